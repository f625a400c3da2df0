// Adapters of PEFT are read, and ours are written as PEFT reads them.
#include "checkpoint/adapter.h"

#include <limits>

#include "checkpoint/peft_config.h"
#include "tests/checkpoint/adapter_fixtures.h"

namespace lorashard {
namespace {

using nlohmann::ordered_json;

constexpr const char* kQ = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";

// The tensors of `adapter` as PEFT names them, to be changed and written.
struct RawTensor {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;
  std::vector<float> values;
};
std::vector<RawTensor> raw_tensors(const Adapter& adapter) {
  std::vector<RawTensor> raw;
  for (const AdapterModule& m : adapter.modules) {
    const std::string prefix = "base_model.model." + m.name;
    raw.push_back({prefix + ".lora_A.weight", DType::F32, {m.rank, m.in_features}, m.a});
    raw.push_back({prefix + ".lora_B.weight", DType::F32, {m.out_features, m.rank}, m.b});
  }
  return raw;
}
void write_raw(const fs::path& path, const std::vector<RawTensor>& raw) {
  fs::remove(path);
  std::vector<SafetensorsWriter::Entry> entries;
  for (const RawTensor& t : raw) entries.push_back({t.name, t.dtype, t.shape});
  SafetensorsWriter out(path, entries);
  for (const RawTensor& t : raw) {
    std::vector<char> bytes(t.values.size() * size_t(size_of(t.dtype)));
    for (size_t i = 0; i < t.values.size(); ++i)
      store_scalar(bytes.data(), t.dtype, int64_t(i), t.values[i]);
    out.write(bytes.data(), bytes.size());
  }
  out.close();
}

class AdapterFile : public testing::Test {
 protected:
  AdapterFile() { write_adapter(dir.path(), adapter); }
  Adapter read() { return read_adapter(dir.path(), golden_modules()); }
  void set(const std::string& key, const ordered_json& value) {
    ordered_json config = load_json(dir / "adapter_config.json");
    config[key] = value;
    spill(dir / "adapter_config.json", config.dump());
  }
  fs::path weights() const { return dir / "adapter_model.safetensors"; }

  test::TempDir dir;
  Adapter adapter = some_adapter();
};

TEST(Adapter, ReadsAnAdapterOfPeft) {
  const Adapter a = read_adapter(golden("adapter/adapter"), golden_modules());
  EXPECT_TRUE(a.config.use_rslora);
  EXPECT_EQ(a.config.base_digest, "");
  const ordered_json expected = load_json(golden("adapter/modules.json"));
  ASSERT_EQ(a.modules.size(), expected.size());
  const auto file = SafetensorsFile::open(golden("adapter/adapter/adapter_model.safetensors"));
  for (const AdapterModule& m : a.modules) {
    SCOPED_TRACE(m.name);
    ASSERT_TRUE(expected.contains(m.name));
    EXPECT_EQ(m.rank, expected[m.name]["rank"].get<int64_t>());
    EXPECT_EQ(m.alpha, expected[m.name]["alpha"].get<double>());
    EXPECT_DOUBLE_EQ(a.scaling(m), expected[m.name]["scaling"].get<double>());
    EXPECT_EQ(m.a, values_of(file, "base_model.model." + m.name + ".lora_A.weight"));
    EXPECT_EQ(m.b, values_of(file, "base_model.model." + m.name + ".lora_B.weight"));
  }
}

TEST(Adapter, ReadsEveryReferenceAdapter) {
  for (const char* model : {"llama2", "llama31", "llama31_new_config", "mistral", "qwen2", "qwen3",
                            "llama_tied_bias", "gemma3", "qwen3_window"}) {
    SCOPED_TRACE(model);
    const fs::path config = golden("peft") / model / "model" / "config.json";
    const auto modules = linear_modules(parse_model_config(slurp(config), config.string()));
    for (const char* which : {"adapter", "final_adapter"}) {
      const Adapter a = read_adapter(golden("peft") / model / which, modules);
      EXPECT_FALSE(a.modules.empty());
      test::TempDir out;  // and back
      write_adapter(out.path(), a);
      expect_same(read_adapter(out.path(), modules), a);
    }
  }
}

TEST_F(AdapterFile, RoundTripKeepsEveryBit) {
  adapter.modules[0].a[0] = -0.0f;
  adapter.modules[0].a[1] = std::numeric_limits<float>::denorm_min();
  adapter.modules[0].b[2] = std::numeric_limits<float>::max();
  test::TempDir out;
  const auto digests = write_adapter(out.path(), adapter);
  expect_same(read_adapter(out.path(), golden_modules()), adapter);
  ASSERT_EQ(digests.size(), 2u);
  for (const auto& [name, digest] : digests) EXPECT_EQ(sha256_file(out / name), digest);
}

TEST_F(AdapterFile, WritesPeftsNamesAndKeepsTheDigestOutOfItsConfig) {
  const ordered_json config = load_json(dir / "adapter_config.json");
  EXPECT_EQ(config["peft_type"], "LORA");
  EXPECT_EQ(config["r"], 3);
  EXPECT_TRUE(config["lora_alpha"].is_number_integer());
  EXPECT_EQ(config["task_type"], "CAUSAL_LM");
  // An unknown key makes PEFT warn.
  EXPECT_EQ(slurp(dir / "adapter_config.json").find("lorashard"), std::string::npos);
  const auto file = SafetensorsFile::open(weights());
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_NE(file.find(kQ), nullptr);
}

TEST_F(AdapterFile, WidensHalfPrecisionAndToleratesTheAdaptersName) {
  auto raw = raw_tensors(adapter);
  raw[0].dtype = DType::BF16;
  raw[1].dtype = DType::F16;
  raw[0].name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight";
  write_raw(weights(), raw);
  const Adapter a = read();
  for (size_t i = 0; i < raw[0].values.size(); ++i)
    EXPECT_EQ(a.modules[0].a[i], bf16_to_float(float_to_bf16(raw[0].values[i])));
  for (size_t i = 0; i < raw[1].values.size(); ++i)
    EXPECT_EQ(a.modules[0].b[i], f16_to_float(float_to_f16(raw[1].values[i])));
}

TEST_F(AdapterFile, MagnitudesAndBiasesMustFitTheSettings) {
  const std::string name = "base_model.model.model.layers.0.self_attn.q_proj";
  auto raw = raw_tensors(adapter);
  auto with = raw;
  with.push_back(raw[0]);
  with.back().shape = {int64_t(raw[0].values.size())};
  with.back().name = name + ".lora_magnitude_vector";
  write_raw(weights(), with);
  EXPECT_ERROR(read(), 2, "use_dora in adapter_config.json is false");
  with.back().name = name + ".base_layer.bias";
  write_raw(weights(), with);
  EXPECT_ERROR(read(), 2, "bias in adapter_config.json is \"none\"");
  set("bias", "lora_only");
  Adapter a = read();  // no base is asked
  ASSERT_EQ(a.trained.size(), 1u);
  EXPECT_EQ(a.trained[0].base.name, "model.layers.0.self_attn.q_proj.bias");
  EXPECT_EQ(a.trained[0].values, raw[0].values);
  test::TempDir out;
  write_adapter(out.path(), a);
  expect_same(read_adapter(out.path(), golden_modules()), a);
  const std::vector<TensorSpec> base = {
      {"model.layers.0.self_attn.q_proj.bias", 1, 3, true, Split::None}};
  EXPECT_ERROR(read_adapter(dir.path(), golden_modules(), base), 2, "has the shape");
  with.back().name = name + ".bias";  // of a module that is not adapted
  write_raw(weights(), with);
  EXPECT_ERROR(read(), 2, "base_layer.bias: is missing");
  write_raw(weights(), raw);
  EXPECT_EQ(read().trained.size(), 0u);
  set("use_dora", true);
  EXPECT_ERROR(read(), 2, "lora_magnitude_vector: is missing; use_dora");
}

TEST_F(AdapterFile, RefusesSettingsThatChangeTheMathematicsByName) {
  const std::pair<const char*, ordered_json> refused[] = {
      {"peft_type", "ADALORA"},
      {"task_type", "SEQ_CLS"},
      {"bias", "some"},
      {"bias", true},
      {"use_dora", "yes"},
      {"lora_bias", true},
      {"layer_replication", {{0, 1}}},
      {"megatron_config", {{"a", 1}}},
      {"alora_invocation_tokens", {1}},
      {"eva_config", {{"rho", 2.0}}},
      {"use_bdlora", {{"nblocks", 2}}},
      {"velora_config", {{"scale", 1.0}}},
      {"use_qalora", true},
      {"target_parameters", {"x"}},
      {"init_lora_weights", "pissa"},
      {"init_lora_weights", "pissa_niter_4"},
      {"init_lora_weights", "olora"},
      {"init_lora_weights", "corda"},
      {"init_lora_weights", "loftq"},
      {"something_of_next_year", 1},
      {"something_of_next_year", "on"},
      {"r", 0},
      {"r", -1},
      {"r", 2.5},
      {"r", "8"},
      {"lora_alpha", "x"},
      {"lora_dropout", 1.0},
      {"use_rslora", 1},
      {"target_modules", ordered_json::array()},
      {"target_modules", nullptr},
      {"target_modules", 3},
      {"exclude_modules", {1}},
      {"rank_pattern", {{"q_proj", 0}}},
      {"alpha_pattern", {{"q_proj", "a"}}},
      {"rank_pattern", {{"(", 2}}},
      {"layers_to_transform", {7}},
  };
  const std::string before = slurp(dir / "adapter_config.json");
  for (const auto& [key, value] : refused) {
    SCOPED_TRACE(std::string(key) + " = " + value.dump());
    set(key, value);
    const Caught c = error_of([&] { read(); });
    EXPECT_EQ(c.status, 2);
    EXPECT_EQ(c.text.find((dir / "adapter_config.json").string() + ": "), 0u) << c.text;
    EXPECT_NE(c.text.find(key), std::string::npos) << c.text;
    spill(dir / "adapter_config.json", before);
  }
  EXPECT_NO_THROW(read());
}

TEST_F(AdapterFile, AcceptsWhatHasNoEffect) {
  for (const auto& [key, value] : std::initializer_list<std::pair<const char*, ordered_json>>{
           {"something_of_next_year", nullptr},
           {"another", false},
           {"list", ordered_json::array()},
           {"map", ordered_json::object()},
           {"megatron_core", "megatron.core"},
           {"qalora_group_size", 16},
           {"init_lora_weights", "gaussian"},
           {"revision", "main"},
           {"auto_mapping", {{"base_model_class", "X"}}}})
    set(key, value);
  expect_same(read(), adapter);
}

TEST_F(AdapterFile, RefusesTensorsThatDoNotFit) {
  const auto good = raw_tensors(adapter);
  const auto fails = [&](const std::function<void(std::vector<RawTensor>&)>& change,
                         const std::string& tensor, const std::string& what) {
    auto raw = good;
    change(raw);
    write_raw(weights(), raw);
    const Caught c = error_of([&] { read(); });
    EXPECT_EQ(c.status, 2);
    EXPECT_EQ(c.text.find(weights().string() + ": " + tensor), 0u) << c.text;
    EXPECT_NE(c.text.find(what), std::string::npos) << c.text;
  };
  fails([](auto& r) { r.erase(r.begin()); }, kQ, "is missing");
  fails([](auto& r) { r.erase(r.begin() + 1); }, "base_model", "is missing");
  fails([](auto& r) { std::swap(r[0].shape[0], r[0].shape[1]); }, kQ, "has the shape (24, 3)");
  fails([](auto& r) { r[0].shape = {72}; }, kQ, "has the shape (72)");
  fails([](auto& r) { r[0].values[5] = NAN; }, kQ, "not finite (element 5)");
  fails([](auto& r) { r[0].values[0] = -INFINITY; }, kQ, "not finite");
  fails([](auto& r) { r[0].name = "lm_head.weight"; }, "lm_head.weight", "is no LoRA factor");
  fails(
      [](auto& r) {
        r.push_back(r[0]);
        r.back().name = "base_model.model.model.embed_tokens.lora_embedding_A";
      },
      "base_model", "no linear layer of the base");
  fails(
      [](auto& r) {
        r.push_back(
            {"base_model.model.model.layers.0.self_attn.q_proj.lora_diag", DType::F32, {1}, {0}});
      },
      "base_model", "is no LoRA factor");
  fails(
      [](auto& r) {
        r.push_back(r[0]);
        r.back().name = "base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight";
      },
      "base_model", "no linear layer of the base");
  fails(
      [](auto& r) {
        r.push_back(r[0]);
        r.back().name = "base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight";
      },
      "base_model", "does not choose");
  fails(
      [](auto& r) {
        r.push_back(r[0]);
        r.back().name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight";
      },
      "base_model", "second lora_A");
  set("r", 4);
  write_raw(weights(), good);
  EXPECT_ERROR(read(), 2, "ask for (4, 24)");
}

TEST_F(AdapterFile, MissingAndDamagedFilesAreNamed) {
  const std::string config = slurp(dir / "adapter_config.json");
  spill(dir / "adapter_config.json", config.substr(0, config.size() / 2));
  EXPECT_ERROR(read(), 2, "adapter_config.json: is not valid JSON");
  spill(dir / "adapter_config.json", "[1]");
  EXPECT_ERROR(read(), 2, "is not a JSON object");
  spill(dir / "adapter_config.json", config);
  const std::string bytes = slurp(weights());
  for (const size_t size : {size_t{0}, size_t{7}, size_t{100}, bytes.size() - 1}) {
    spill(weights(), bytes.substr(0, size));
    EXPECT_ERROR(read(), 2, weights().string());
  }
  fs::remove(weights());
  EXPECT_ERROR(read(), 2, "holds no adapter_model.safetensors");
  spill(dir / "adapter_model.bin", "x");
  EXPECT_ERROR(read(), 2, "adapter_model.bin: is a pickle file");
  fs::remove(dir / "adapter_config.json");
  EXPECT_ERROR(read(), 2, "holds no adapter_config.json");
}

TEST_F(AdapterFile, PatternsAreTriedInTheFilesOrder) {
  // Sorted order would try "down_proj" first.
  set("rank_pattern", ordered_json::parse(R"({"mlp.*": 2, "down_proj": 1})"));
  for (AdapterModule& m : adapter.modules)
    if (m.name.ends_with("down_proj")) {
      m.rank = 2;
      m.a.resize(size_t(2 * m.in_features));
      m.b.resize(size_t(2 * m.out_features));
    }
  write_raw(weights(), raw_tensors(adapter));
  const Adapter a = read();
  for (const AdapterModule& m : a.modules) {
    EXPECT_EQ(m.rank, m.name.ends_with("down_proj") ? 2 : 3);
    EXPECT_EQ(module_rank(a.config, m.name), m.rank);  // settled for our order
  }
  test::TempDir out;
  write_adapter(out.path(), a);
  expect_same(read_adapter(out.path(), golden_modules()), a);
}

TEST_F(AdapterFile, RanksOfTheModulesReachTheFile) {
  adapter.modules[1].alpha = 1.5;  // no pattern says so
  test::TempDir out;
  write_adapter(out.path(), adapter);
  const Adapter a = read_adapter(out.path(), golden_modules());
  EXPECT_EQ(a.modules[1].alpha, 1.5);
  EXPECT_EQ(a.modules[0].alpha, 6);
  EXPECT_EQ(load_json(out / "adapter_config.json")["alpha_pattern"].size(), 1u);
}

TEST(Adapter, AllLinearIsWrittenAsNames) {
  Adapter a;
  a.config.target_modules = {"all-linear"};
  a.config.rank = 1;
  a.config.alpha = 1;
  for (const LinearModule& m : golden_modules())
    a.modules.push_back({m.name, 1, m.in_features, m.out_features, 1, false,
                         some_values(1, size_t(m.in_features)),
                         some_values(2, size_t(m.out_features))});
  test::TempDir out;
  write_adapter(out.path(), a);
  EXPECT_EQ(load_json(out / "adapter_config.json")["target_modules"].size(), 7u);
  EXPECT_EQ(read_adapter(out.path(), golden_modules()).modules.size(), a.modules.size());
}

TEST_F(AdapterFile, LayersToTransformAreReadAndWrittenAsPeftHasThem) {
  std::erase_if(adapter.modules, [](const AdapterModule& m) { return m.name[13] == '0'; });
  ASSERT_FALSE(adapter.modules.empty());
  write_raw(weights(), raw_tensors(adapter));
  EXPECT_ERROR(read(), 2, "is missing");
  set("layers_to_transform", 1);
  set("layers_pattern", "layers");
  const Adapter a = read();
  ASSERT_EQ(a.modules.size(), adapter.modules.size());
  EXPECT_EQ(a.config.target_modules, adapter.config.target_modules);
  test::TempDir out;
  write_adapter(out.path(), a);
  EXPECT_EQ(load_json(out / "adapter_config.json")["layers_to_transform"], ordered_json({1}));
  EXPECT_EQ(load_json(out / "adapter_config.json")["layers_pattern"], ordered_json({"layers"}));
  expect_same(read_adapter(out.path(), golden_modules()), a);
  // PEFT refuses these, too.
  set("layers_to_transform", nullptr);
  EXPECT_ERROR(read(), 2, "layers_pattern stands without layers_to_transform");
  set("layers_to_transform", ordered_json::array());
  set("target_modules", ".*_proj");
  EXPECT_ERROR(read(), 2, "layers_to_transform cannot stand beside");
}

TEST_F(AdapterFile, InspectSaysWhatItIs) {
  std::string all;
  for (const std::string& line : inspect_adapter(dir.path())) all += line + "\n";
  for (const std::string& part :
       {std::string("rank 3"), std::string("alpha 6"), std::string("some/base"),
        adapter.config.base_digest, sha256_file(weights())})
    EXPECT_NE(all.find(part), std::string::npos) << all;
  auto raw = raw_tensors(adapter);
  raw[1].values[0] = NAN;
  write_raw(weights(), raw);
  EXPECT_ERROR(inspect_adapter(dir.path()), 2, "not finite");
}

}  // namespace
}  // namespace lorashard
