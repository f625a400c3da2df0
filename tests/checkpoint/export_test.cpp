// Merged models against PEFT's merge and against the definition of rounding, and their files.
#include "checkpoint/export.h"

#include "kernels/merge.h"
#include "tests/checkpoint/adapter_fixtures.h"

namespace lorashard {
namespace {

using nlohmann::ordered_json;

// y = w + scale b a in double, then the nearest value of the type (float_types.h is tested alone).
TEST(MergeRows, IsRoundedOnceFromTheSum) {
  for (const DType dtype : {DType::BF16, DType::F16, DType::F32})
    for (const int64_t rank : {0, 1, 3, 4, 7, 64, 300}) {
      SCOPED_TRACE(std::string(name_of(dtype)) + " rank " + std::to_string(rank));
      const int64_t rows = 5, cols = 1027;  // more than two chunks, and an odd rest
      const float scale = 1.75f;
      const auto a = some_values(1, size_t(rank * cols)), b = some_values(2, size_t(rank * rows));
      std::vector<uint32_t> w(size_t(rows * cols)), y(w.size());
      for (int64_t i = 0; i < rows * cols; ++i)
        store_scalar(w.data(), dtype, i, some_value(3, size_t(i)));
      const RoundingError e =
          merge_rows(matrix(y.data(), rows, cols, dtype), const_matrix(w.data(), rows, cols, dtype),
                     a.data(), b.data(), rank, scale);
      double worst = 0, magnitude = 0;
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < cols; ++j) {
          double sum = load_scalar(w.data(), dtype, i * cols + j), size = std::fabs(sum);
          for (int64_t k = 0; k < rank; ++k) {
            const double term = double(scale) * b[size_t(i * rank + k)] * a[size_t(k * cols + j)];
            sum += term;
            size += std::fabs(term);
          }
          // The fp32 sum's own error, then half a step of the type.
          const double slack = 4 * double(rank + 1) * 0x1p-24 * size;
          const double step = dtype == DType::F32    ? 0x1p-23
                              : dtype == DType::BF16 ? 0x1p-7
                                                     : 0x1p-10;
          const double half = std::max(std::ldexp(step, std::ilogb(std::fabs(sum) + slack)) / 2,
                                       dtype == DType::F16 ? 0x1p-25 : 0.0);
          const double error = std::fabs(double(load_scalar(y.data(), dtype, i * cols + j)) - sum);
          ASSERT_LE(error, half + slack) << i << ", " << j;
          worst = std::max(worst, error);
          magnitude = std::max(magnitude, std::fabs(sum));
        }
      EXPECT_NEAR(e.max_magnitude, magnitude, 1e-4 * (magnitude + 1));
      if (dtype == DType::F32) {
        EXPECT_EQ(e.max_abs, 0);
      } else {
        EXPECT_NEAR(e.max_abs, worst, 1e-4);
        EXPECT_TRUE(rank == 0 || e.max_abs > 0);
      }
    }
}

class Export : public testing::Test {
 protected:
  std::unique_ptr<BaseModel> base = BaseModel::open(golden("adapter/base").string());
  Adapter adapter = read_adapter(golden("adapter/adapter"), golden_modules());
  test::TempDir scratch;
  std::string out = scratch / "merged";
};

TEST_F(Export, EqualsPeftsMerge) {
  ExportOptions options;
  options.dtype = DType::F32;
  const auto errors = export_merged(*base, adapter, out, options);
  EXPECT_EQ(errors.size(), adapter.modules.size());
  for (const MergeError& e : errors) EXPECT_EQ(e.max_abs, 0) << e.name;
  const auto ours = SafetensorsFile::open(fs::path(out) / "model.safetensors");
  const auto peft = SafetensorsFile::open(golden("adapter/merged.safetensors"));
  EXPECT_EQ(peft.tensors().size(), adapter.modules.size());
  for (const TensorInfo& t : peft.tensors()) {
    const auto x = values_of(ours, t.name), y = values_of(peft, t.name);
    ASSERT_EQ(x.size(), y.size());
    for (size_t i = 0; i < x.size(); ++i) ASSERT_NEAR(x[i], y[i], 2e-6) << t.name;
  }
  // Everything else is the base's, widened.
  const auto stored = SafetensorsFile::open(golden("adapter/base/model.safetensors"));
  for (const TensorInfo& t : stored.tensors())
    if (!peft.find(t.name)) {
      EXPECT_EQ(values_of(ours, t.name), values_of(stored, t.name)) << t.name;
    }
  EXPECT_EQ(ours.tensors().size(), stored.tensors().size());
  EXPECT_EQ(load_json(fs::path(out) / "config.json")["dtype"], "float32");
}

TEST_F(Export, KeepsTheStoredTypeAndReportsItsRounding) {
  const auto errors = export_merged(*base, adapter, out, {});
  const auto ours = SafetensorsFile::open(fs::path(out) / "model.safetensors");
  const auto peft = SafetensorsFile::open(golden("adapter/merged.safetensors"));
  const auto stored = SafetensorsFile::open(golden("adapter/base/model.safetensors"));
  for (const MergeError& e : errors) {
    const std::string weight = e.name + ".weight";
    EXPECT_EQ(ours.find(weight)->dtype, DType::BF16);
    const auto x = values_of(ours, weight), exact = values_of(peft, weight);
    float worst = 0, magnitude = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      worst = std::max(worst, std::fabs(x[i] - exact[i]));
      magnitude = std::max(magnitude, std::fabs(exact[i]));
    }
    EXPECT_NEAR(e.max_abs, worst, 2e-6);
    EXPECT_NEAR(e.max_relative, worst / magnitude, 1e-4);
    EXPECT_GT(e.max_abs, 0);
  }
  // What no factor touches is the same bytes, and config.json too.
  for (const TensorInfo& t : stored.tensors())
    if (!peft.find(t.name)) {
      EXPECT_EQ(std::memcmp(ours.data(*ours.find(t.name)), stored.data(t), t.bytes), 0) << t.name;
    }
  EXPECT_EQ(slurp(fs::path(out) / "config.json"), slurp(golden("adapter/base/config.json")));
  EXPECT_NO_THROW(BaseModel::open(out));
}

TEST_F(Export, ShardsWithAnIndex) {
  ExportOptions options;
  options.max_shard_bytes = 5000;
  uint64_t last = 0, total = 0;
  options.progress = [&](uint64_t done, uint64_t all) {
    EXPECT_GT(done, last);
    last = done;
    total = all;
  };
  export_merged(*base, adapter, out, options);
  const ordered_json index = load_json(fs::path(out) / "model.safetensors.index.json");
  uint64_t bytes = 0;
  std::set<std::string> files;
  for (const auto& [tensor, file] : index["weight_map"].items()) files.insert(file);
  EXPECT_GT(files.size(), 3u);
  size_t count = 0;
  for (const std::string& name : files) {
    char expected[64];
    std::snprintf(expected, sizeof expected, "model-%05zu-of-%05zu.safetensors", ++count,
                  files.size());
    EXPECT_EQ(name, expected);
    const auto shard = SafetensorsFile::open(fs::path(out) / name);
    uint64_t in_shard = 0;
    for (const TensorInfo& t : shard.tensors()) {
      EXPECT_EQ(index["weight_map"][t.name], name);
      in_shard += t.bytes;
    }
    EXPECT_LE(in_shard, 5000u);
    bytes += in_shard;
  }
  EXPECT_EQ(index["metadata"]["total_size"].get<uint64_t>(), bytes);
  EXPECT_EQ(index["metadata"]["total_parameters"].get<uint64_t>(), bytes / 2);
  EXPECT_EQ(last, bytes);
  EXPECT_EQ(total, bytes);

  // The merged model in one file; a tensor larger than the limit has a file of its own.
  export_merged(*base, adapter, scratch / "one", {});
  options.max_shard_bytes = 1;
  options.progress = nullptr;
  export_merged(*base, adapter, scratch / "many", options);
  const auto whole = BaseModel::open(scratch / "one"), sharded = BaseModel::open(out),
             many = BaseModel::open(scratch / "many");
  ASSERT_EQ(whole->tensors().size(), sharded->tensors().size());
  for (const auto& t : whole->tensors())
    for (const auto* other : {sharded.get(), many.get()})
      EXPECT_EQ(std::memcmp(whole->whole(t.name).matrix.data, other->whole(t.name).matrix.data,
                            t.bytes()),
                0)
          << t.name;
}

TEST_F(Export, CarriesCompanionsAndTheKeyOfTheType) {
  fs::copy(golden("adapter/base"), scratch / "base");
  spill(scratch / "base" / "tokenizer.json", std::string(20 << 20, 't'));
  spill(scratch / "base" / "LICENSE", "");
  ordered_json config = load_json(scratch / "base" / "config.json");
  config.erase("dtype");
  config["torch_dtype"] = "bfloat16";
  spill(scratch / "base" / "config.json", config.dump());
  const auto old = BaseModel::open(scratch / "base");
  ExportOptions options;
  options.dtype = DType::F16;
  export_merged(*old, adapter, out, options);
  EXPECT_EQ(slurp(fs::path(out) / "tokenizer.json"), std::string(20 << 20, 't'));
  EXPECT_TRUE(fs::exists(fs::path(out) / "LICENSE"));
  const ordered_json written = load_json(fs::path(out) / "config.json");
  EXPECT_EQ(written["torch_dtype"], "float16");
  EXPECT_FALSE(written.contains("dtype"));
  const auto file = SafetensorsFile::open(fs::path(out) / "model.safetensors");
  for (const TensorInfo& t : file.tensors()) EXPECT_EQ(t.dtype, DType::F16);
}

// Subfolders too, also by way of a shard set; not the model in another form, nor what is hidden.
TEST_F(Export, CarriesCompanionsOfSubfolders) {
  fs::copy(golden("adapter/base"), scratch / "base");
  const std::map<std::string, bool> files{{"additional_chat_templates/tool_use.jinja", true},
                                          {"a/b/c.txt", true},
                                          {"original/params.json", false},
                                          {"original/consolidated.00.pth", false},
                                          {"a/onnx/model.onnx", false},
                                          {"a/onnx/config.json", false},
                                          {".git/HEAD", false},
                                          {"a/.cache/x", false},
                                          {"1_Pooling/config.json", true}};
  for (const auto& [name, carried] : files) {
    fs::create_directories((scratch / "base" / name).parent_path());
    spill(scratch / "base" / name, name);
  }
  const auto with = BaseModel::open(scratch / "base");
  const auto world = make_self_communicator();
  const auto expect_carried = [&](const fs::path& dir) {
    for (const auto& [name, carried] : files) {
      SCOPED_TRACE(name);
      ASSERT_EQ(fs::exists(dir / name), carried);
      if (carried) {
        EXPECT_EQ(slurp(dir / name), name);
      }
    }
  };
  export_merged(*with, adapter, out, {});
  expect_carried(out);
  write_base_shards(*with, 2, scratch / "shards", *world);
  expect_carried(scratch / "shards");
  const auto shards = BaseModel::open(scratch / "shards");
  EXPECT_EQ(shards->digest(*world), with->digest(*world));
  export_merged(*shards, adapter, scratch / "again", {});
  expect_carried(scratch / "again");
  spill(scratch / "shards" / "a" / "more", "");
  EXPECT_ERROR(BaseModel::open(scratch / "shards"), 2, "is not listed");
  fs::remove(scratch / "shards" / "a" / "more");
  fs::remove(scratch / "shards" / "a" / "b" / "c.txt");
  EXPECT_ERROR(BaseModel::open(scratch / "shards"), 2, "a/b/c.txt: is missing");
}

TEST_F(Export, TiedEmbeddingsStayTied) {
  const auto tied = BaseModel::open(golden("peft/llama_tied_bias/model").string());
  const Adapter a =
      read_adapter(golden("peft/llama_tied_bias/adapter"), linear_modules(tied->config()));
  export_merged(*tied, a, out, {});
  const auto file = SafetensorsFile::open(fs::path(out) / "model.safetensors");
  EXPECT_EQ(file.find("lm_head.weight"), nullptr);
  EXPECT_EQ(load_json(fs::path(out) / "config.json")["tie_word_embeddings"], true);
  EXPECT_TRUE(BaseModel::open(out)->config().tied_embeddings);
}

TEST_F(Export, RefusesAnotherBase) {
  ExportOptions options;
  options.base_digest = std::string(64, '1');
  EXPECT_NO_THROW(export_merged(*base, adapter, scratch / "elsewhere", options));  // no digest
  adapter.config.base_digest = std::string(64, '2');
  EXPECT_NO_THROW(export_merged(*base, adapter, scratch / "unchecked", {}));
  const Caught c = error_of([&] { export_merged(*base, adapter, out, options); });
  EXPECT_EQ(c.status, 2);
  EXPECT_NE(c.text.find(options.base_digest), std::string::npos) << c.text;
  EXPECT_NE(c.text.find(adapter.config.base_digest), std::string::npos) << c.text;
  EXPECT_FALSE(fs::exists(out));
  adapter.config.base_digest = options.base_digest;
  EXPECT_NO_THROW(export_merged(*base, adapter, out, options));
}

TEST_F(Export, RefusesWhatDoesNotFit) {
  fs::create_directory(out);
  EXPECT_ERROR(export_merged(*base, adapter, out, {}), 2, "exists already");
  EXPECT_ERROR(export_peft(adapter, out), 2, "exists already");
  Adapter other = adapter;
  other.modules[0].name = "model.layers.7.self_attn.q_proj";
  EXPECT_ERROR(export_merged(*base, other, scratch / "x", {}), 2,
               "model.layers.7.self_attn.q_proj");
  other = adapter;
  other.modules[0].in_features = 7;
  EXPECT_ERROR(export_merged(*base, other, scratch / "x", {}), 2, "another shape");
}

TEST_F(Export, AFullDiskOrAnOverflowLeavesNothing) {
  const auto entries = [&] {
    size_t n = 0;
    for ([[maybe_unused]] const auto& e : fs::directory_iterator(scratch.path())) ++n;
    return n;
  };
  for (const uint64_t bytes : {0, 300, 5000, 20000}) {
    FileSizeLimit full(bytes);
    EXPECT_ERROR(export_merged(*base, adapter, out, {}), 3, "model.safetensors");
    EXPECT_ERROR(export_peft(adapter, out), 3, "cannot be written");
    EXPECT_EQ(entries(), 0u);
    if (bytes == 5000) break;  // the adapter fits from here on
  }
  adapter.modules[2].b[0] = 1e6;
  ExportOptions options;
  options.dtype = DType::F16;
  EXPECT_ERROR(export_merged(*base, adapter, out, options), 3,
               base->path() + ": " + adapter.modules[2].name + ".weight: holds a value");
  EXPECT_EQ(entries(), 0u);
  EXPECT_ERROR(export_merged(*base, adapter, scratch / "file" / "x" / "y",
                             [&] {
                               spill(scratch / "file", "");
                               return ExportOptions{};
                             }()),
               3, "cannot be created");
}

TEST_F(Export, PeftIsTheAdapterAgain) {
  adapter.config.base_digest = std::string(64, 'f');
  export_peft(adapter, out);
  expect_same(read_adapter(out, golden_modules()), adapter);
}

TEST_F(Export, ShardSetHoldsTheMergedModel) {
  export_merged(*base, adapter, out, {});
  const auto world = make_self_communicator();
  const auto errors = export_shards(*base, adapter, 2, scratch / "shards", {}, *world);
  EXPECT_EQ(errors.size(), adapter.modules.size());
  const auto merged = BaseModel::open(out), shards = BaseModel::open(scratch / "shards");
  EXPECT_TRUE(shards->is_shard_set());
  for (const auto& t : merged->tensors())
    EXPECT_EQ(std::memcmp(merged->whole(t.name).matrix.data, shards->whole(t.name).matrix.data,
                          t.bytes()),
              0)
        << t.name;
  EXPECT_EQ(merged->digest(*world), shards->digest(*world));
  size_t entries = 0;  // nothing beside the two remains
  for ([[maybe_unused]] const auto& e : fs::directory_iterator(scratch.path())) ++entries;
  EXPECT_EQ(entries, 2u);
  EXPECT_ERROR(export_shards(*base, adapter, 2, scratch / "shards", {}, *world), 2, "exists");
}

}  // namespace
}  // namespace lorashard
