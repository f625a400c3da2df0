#include "checkpoint/base_model.h"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "checkpoint/base_inspect.h"
#include "checkpoint/safetensors.h"
#include "parallel/collectives.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_model.h"

namespace lorashard::test {
namespace {

using nlohmann::json;

// The bytes of rows x columns of a tensor as written.
std::vector<char> expected_bytes(const TinyModel::Tensor& t, const TensorPart& p) {
  const int64_t cols = t.shape.back(), size = size_of(t.dtype);
  std::vector<char> bytes;
  for (int64_t r = p.row_begin; r < p.row_end; ++r) {
    const char* row = t.bytes.data() + r * cols * size;
    bytes.insert(bytes.end(), row + p.col_begin * size, row + p.col_end * size);
  }
  return bytes;
}

std::vector<char> actual_bytes(const WeightSlice& s) {
  std::vector<char> bytes;
  for (int64_t r = 0; r < s.matrix.rows; ++r)
    bytes.insert(bytes.end(), s.matrix.at(r, 0),
                 s.matrix.at(r, 0) + s.matrix.cols * size_of(s.matrix.dtype));
  return bytes;
}

// Every part of every tensor at every degree.
void expect_slices(const BaseModel& base, const TinyModel& model) {
  for (int ranks = 1; ranks <= model.config.heads; ++ranks)
    for (int rank = 0; rank < ranks; ++rank)
      for (const TensorSpec& spec : model_tensors(model.config)) {
        const TensorPart part =
            tensor_part(model.config, spec.split, spec.rows, spec.cols, rank, ranks);
        const WeightSlice s = base.slice(spec.name, part);
        ASSERT_EQ(s.matrix.rows, part.row_end - part.row_begin) << spec.name;
        ASSERT_EQ(s.matrix.cols, part.col_end - part.col_begin) << spec.name;
        ASSERT_EQ(actual_bytes(s), expected_bytes(model.tensors.at(spec.name), part))
            << spec.name << " rank " << rank << " of " << ranks;
      }
}

std::string open_and_digest(const fs::path& dir) {
  return BaseModel::open(dir.string())->digest(*make_self_communicator());
}

void rewrite(const fs::path& path, const std::string& text) {
  fs::remove(path);
  std::ofstream(path) << text;
}

// A safetensors file with one tensor changed by `edit`, others as they were.
void rewrite_tensors(const fs::path& path,
                     const std::function<void(std::vector<SafetensorsWriter::Entry>&,
                                              std::vector<std::vector<char>>&)>& edit) {
  std::vector<SafetensorsWriter::Entry> entries;
  std::vector<std::vector<char>> data;
  {
    const SafetensorsFile file = SafetensorsFile::open(path);
    for (const TensorInfo& t : file.tensors()) {
      entries.push_back({t.name, t.dtype, t.shape});
      data.emplace_back(file.data(t), file.data(t) + t.bytes);
    }
  }
  edit(entries, data);
  fs::remove(path);
  SafetensorsWriter out(path, entries);
  for (const auto& d : data) out.write(d.data(), d.size());
  out.close();
}

size_t index_of(const std::vector<SafetensorsWriter::Entry>& entries, const std::string& name) {
  size_t i = 0;
  while (entries.at(i).name != name) ++i;
  return i;
}

class BaseModelTest : public ::testing::Test {
 protected:
  void SetUp() override { ::setenv("XDG_CACHE_HOME", (dir_ / "cache").c_str(), 1); }
  fs::path path(const std::string& name) { return dir_ / name; }
  void expect_refused(const std::vector<std::string>& parts, const fs::path& model) {
    expect_error(kExitInput, parts, [&] { open_and_digest(model); });
  }
  TempDir dir_;
};

TEST_F(BaseModelTest, SlicesEveryFamilyAtEveryDegree) {
  for (const char* type : {"llama", "mistral", "qwen2", "qwen3", "gemma3_text"})
    for (const DType dtype : {DType::BF16, DType::F16, DType::F32}) {
      TinyModelOptions o;
      o.model_type = type;
      o.dtype = dtype;
      o.tied = dtype == DType::F16;
      o.files = dtype == DType::F32 ? 3 : 1;
      const std::string name = std::string(type) + std::string(name_of(dtype));
      const TinyModel model = write_tiny_model(path(name), o);
      const auto base = BaseModel::open(path(name).string());
      EXPECT_EQ(base->tensors().size(), model.tensors.size());
      EXPECT_EQ(base->find("lm_head.weight") == nullptr, o.tied);
      EXPECT_EQ(base->config().stored_dtype, dtype);
      EXPECT_EQ(base->companion_files().size(), 2u);
      expect_slices(*base, model);
    }
}

TEST_F(BaseModelTest, RowPartsAreViewsAndColumnPartsAreCopies) {
  write_tiny_model(path("m"));
  const auto base = BaseModel::open(path("m").string());
  const std::string q = "model.layers.0.self_attn.q_proj.weight";
  const auto whole = base->whole(q), rows = base->slice(q, {8, 16, 0, 48}),
             columns = base->slice(q, {0, 48, 8, 16});
  EXPECT_EQ(rows.matrix.data, whole.matrix.at(8, 0));
  EXPECT_EQ(columns.matrix.ld, 8);
  EXPECT_NE(columns.matrix.data, whole.matrix.at(0, 8));
}

TEST_F(BaseModelTest, SlicesOutliveTheModel) {
  const TinyModel model = write_tiny_model(path("m"));
  auto base = BaseModel::open(path("m").string());
  const auto slice = base->whole("model.norm.weight");
  base.reset();
  EXPECT_EQ(actual_bytes(slice), model.tensors.at("model.norm.weight").bytes);
}

TEST_F(BaseModelTest, FollowsSymbolicLinksAsTheHubCacheHasThem) {
  const TinyModel model = write_tiny_model(path("blobs"));
  fs::create_directories(path("m"));
  for (const char* f : {"config.json", "model.safetensors", "tokenizer_config.json"})
    fs::create_symlink(path("blobs") / f, path("m") / f);
  const auto base = BaseModel::open(path("m").string());
  expect_slices(*base, model);
  EXPECT_EQ(base->companion_files().size(), 1u);
}

TEST_F(BaseModelTest, RefusesDirectoriesThatAreNoModel) {
  expect_refused({path("none").string(), "does not exist"}, path("none"));
  rewrite(path("file"), "x");
  expect_refused({"is not a directory"}, path("file"));
  fs::create_directories(path("empty"));
  expect_refused({path("empty").string(), "no config.json"}, path("empty"));
  write_tiny_model(path("m"));
  fs::remove(path("m") / "model.safetensors");
  expect_refused({"holds neither model.safetensors nor"}, path("m"));
  rewrite(path("m") / "pytorch_model.bin", "x");
  expect_refused({"pytorch_model.bin", "safetensors"}, path("m"));
}

TEST_F(BaseModelTest, RefusesLyingIndexes) {
  TinyModelOptions o;
  o.files = 2;
  write_tiny_model(path("m"), o);
  const fs::path index = path("m") / "model.safetensors.index.json";
  const json good = json::parse(std::ifstream(index));
  const std::string norm = "model.norm.weight";
  const auto refuse = [&](const std::vector<std::string>& parts,
                          const std::function<void(json&)>& edit) {
    json bad = good;
    edit(bad);
    rewrite(index, bad.dump());
    expect_refused(parts, path("m"));
  };
  refuse({norm, "nowhere.safetensors", "does not exist"},
         [&](json& j) { j["weight_map"][norm] = "nowhere.safetensors"; });
  refuse({norm, "../x.safetensors", "outside"},
         [&](json& j) { j["weight_map"][norm] = "../x.safetensors"; });
  refuse({norm, "/etc/passwd", "outside"}, [&](json& j) { j["weight_map"][norm] = "/etc/passwd"; });
  refuse({norm, "not a string"}, [&](json& j) { j["weight_map"][norm] = 7; });
  refuse({norm, "is not listed"}, [&](json& j) { j["weight_map"].erase(norm); });
  refuse({norm, "places it in model-00001-of-00002"},
         [&](json& j) { j["weight_map"][norm] = "model-00001-of-00002.safetensors"; });
  refuse({"model.extra", "is missing, though"},
         [&](json& j) { j["weight_map"]["model.extra"] = "model-00001-of-00002.safetensors"; });
  refuse({"no weight_map"}, [](json& j) { j.erase("weight_map"); });
  rewrite(index, "{\"weight_map\": ");
  expect_refused({index.string(), "not valid JSON", "line 1"}, path("m"));
  rewrite(index, good.dump());
  EXPECT_EQ(open_and_digest(path("m")).size(), 64u);
}

TEST_F(BaseModelTest, RefusesTensorsThatDoNotFitTheConfig) {
  const std::string q = "model.layers.1.self_attn.q_proj.weight";
  const auto refuse = [&](const std::vector<std::string>& parts, const auto& edit) {
    fs::remove_all(path("m"));
    write_tiny_model(path("m"));
    rewrite_tensors(path("m") / "model.safetensors", edit);
    expect_refused(parts, path("m"));
  };
  refuse({"model.safetensors: " + q, "shape [24, 96]", "[48, 48]"}, [&](auto& e, auto&) {
    e[index_of(e, q)].shape = {24, 96};
  });
  refuse({q, "F64", "BF16, F16 or F32"}, [&](auto& e, auto& d) {
    e[index_of(e, q)].dtype = DType::F64;
    d[index_of(e, q)].resize(48 * 48 * 8);
  });
  refuse({q, "is missing"}, [&](auto& e, auto& d) {
    const size_t i = index_of(e, q);
    e.erase(e.begin() + static_cast<long>(i));
    d.erase(d.begin() + static_cast<long>(i));
  });
  refuse({"model.layers.1.self_attn.q_proj.weight_scale", "is not a tensor of LlamaForCausalLM"},
         [&](auto& e, auto& d) {
           e.push_back({q + "_scale", DType::F32, {1}});
           d.emplace_back(4);
         });
}

TEST_F(BaseModelTest, LeavesOutRotaryFrequenciesWithANote) {
  write_tiny_model(path("m"));
  const std::string before = open_and_digest(path("m"));
  rewrite_tensors(path("m") / "model.safetensors", [](auto& e, auto& d) {
    e.push_back({"model.layers.0.self_attn.rotary_emb.inv_freq", DType::F32, {4}});
    d.emplace_back(16);
  });
  const auto base = BaseModel::open(path("m").string());
  ASSERT_EQ(base->notes().size(), 1u);
  EXPECT_EQ(base->digest(*make_self_communicator()), before);
}

TEST_F(BaseModelTest, TiedHeadMayOnlyRepeatTheEmbedding) {
  TinyModelOptions o;
  o.tied = true;
  const TinyModel model = write_tiny_model(path("m"), o);
  const std::string digest = open_and_digest(path("m"));
  const fs::path file = path("m") / "model.safetensors";
  const auto& embedding = model.tensors.at("model.embed_tokens.weight");
  rewrite_tensors(file, [&](auto& e, auto& d) {
    e.push_back({"lm_head.weight", DType::BF16, embedding.shape});
    d.push_back(embedding.bytes);
  });
  EXPECT_EQ(open_and_digest(path("m")), digest);
  rewrite_tensors(file, [&](auto& e, auto& d) {
    const size_t i = index_of(e, "model.embed_tokens.weight");
    e.erase(e.begin() + static_cast<long>(i));
    d.erase(d.begin() + static_cast<long>(i));
  });
  EXPECT_EQ(open_and_digest(path("m")), digest);  // the head alone stands for both
  rewrite_tensors(file, [&](auto& e, auto& d) {
    e.push_back({"model.embed_tokens.weight", DType::BF16, embedding.shape});
    d.push_back(embedding.bytes);
    d.back()[5] ^= 1;
  });
  expect_refused({"lm_head.weight", "differs", "tie_word_embeddings"}, path("m"));
}

// As Qwen3-Embedding is published, and as transformers saves any base model.
TEST_F(BaseModelTest, TensorsOfABaseSavedWithoutItsHead) {
  for (const bool tied : {true, false}) {
    TinyModelOptions o;
    o.model_type = "qwen3";
    o.tied = tied;
    const fs::path dir = path(tied ? "tied" : "untied");
    const TinyModel model = write_tiny_model(dir, o);
    const std::string digest = open_and_digest(dir);
    rewrite_tensors(dir / "model.safetensors", [](auto& entries, auto&) {
      for (auto& e : entries)
        if (e.name != "lm_head.weight") e.name = e.name.substr(std::string("model.").size());
    });
    const auto base = BaseModel::open(dir.string());
    EXPECT_EQ(base->digest(*make_self_communicator()), digest);
    expect_slices(*base, model);
    ASSERT_EQ(base->notes().size(), 1u);
    EXPECT_NE(base->notes()[0].find("without its head"), std::string::npos);
  }
  // A head that the config asks for is not made up, as transformers would, at random.
  rewrite_tensors(path("untied") / "model.safetensors", [](auto& entries, auto& data) {
    const size_t i = index_of(entries, "lm_head.weight");
    entries.erase(entries.begin() + static_cast<long>(i));
    data.erase(data.begin() + static_cast<long>(i));
  });
  expect_refused({"lm_head.weight", "is missing"}, path("untied"));
  // Neither one form nor the other.
  rewrite_tensors(path("tied") / "model.safetensors", [](auto& entries, auto&) {
    entries[index_of(entries, "norm.weight")].name = "model.norm.weight";
  });
  expect_refused({"model.embed_tokens.weight", "is missing"}, path("tied"));
}

TEST_F(BaseModelTest, AnIndexMayListTheTiedHeadThatNoFileHolds) {
  TinyModelOptions o;
  o.tied = true;
  o.files = 2;
  write_tiny_model(path("m"), o);
  const std::string digest = open_and_digest(path("m"));
  const fs::path file = path("m") / "model.safetensors.index.json";
  json index = json::parse(read_text(file));
  index["weight_map"]["lm_head.weight"] = index["weight_map"].begin().value();
  rewrite(file, index.dump());
  EXPECT_EQ(open_and_digest(path("m")), digest);
  index["weight_map"]["model.other.weight"] = index["weight_map"].begin().value();
  rewrite(file, index.dump());
  expect_refused({"model.other.weight", "is missing"}, path("m"));
}

TEST_F(BaseModelTest, GitLfsPointersAreNamed) {
  for (const char* name : {"config.json", "model.safetensors"}) {
    const fs::path dir = path(std::string("lfs") + name);
    write_tiny_model(dir);
    rewrite(dir / name,
            "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 988097824\n");
    expect_refused({name, "Git LFS pointer", "git lfs pull"}, dir);
  }
}

TEST_F(BaseModelTest, MisalignedTensorsAreCopied) {
  const TinyModel model = write_tiny_model(path("m"));
  const fs::path file = path("m") / "model.safetensors";
  // One space more in the header moves all data by a byte.
  std::string text = read_text(file);
  uint64_t header = 0;
  std::memcpy(&header, text.data(), 8);
  text.insert(8 + header, " ");
  ++header;
  std::memcpy(text.data(), &header, 8);
  const std::string digest = open_and_digest(path("m"));
  rewrite(file, text);
  const auto base = BaseModel::open(path("m").string());
  EXPECT_EQ(reinterpret_cast<uintptr_t>(base->whole("model.norm.weight").matrix.data) % 2, 0u);
  expect_slices(*base, model);
  EXPECT_EQ(base->digest(*make_self_communicator()), digest);
}

TEST_F(BaseModelTest, InspectSaysWhatItIs) {
  TinyModelOptions o;
  o.model_type = "qwen3";
  write_tiny_model(path("m"), o);
  std::string text;
  for (const auto& line : inspect_base(path("m").string(), *make_self_communicator()))
    text += line + "\n";
  for (const char* part : {"kind: Hugging Face model", "Qwen3ForCausalLM", "query and key norms",
                           "6 query heads, 3 key/value heads", "dtype: BF16", "base digest: "})
    EXPECT_NE(text.find(part), std::string::npos) << part << " is not in\n" << text;
}

}  // namespace
}  // namespace lorashard::test
