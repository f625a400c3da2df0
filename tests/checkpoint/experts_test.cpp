// A mixture of experts' settings, adapters and exports (Qwen3-MoE).
#include <gtest/gtest.h>

#include <set>

#include "checkpoint/expert_names.h"
#include "checkpoint/export.h"
#include "checkpoint/peft_config.h"
#include "tests/checkpoint/adapter_fixtures.h"

namespace lorashard {
namespace {

using nlohmann::ordered_json;

const char* const kCases[] = {"peft/qwen3_moe", "peft/qwen3_moe_dense"};

ordered_json config_of(const std::string& name) {
  return load_json(golden(name) / "model" / "config.json");
}
ModelConfig parse(const ordered_json& config) {
  return parse_model_config(config.dump(), "config.json");
}

TEST(ExpertConfig, IsReadAndRefusedByName) {
  const ordered_json good = config_of("peft/qwen3_moe_dense");
  const ModelConfig c = parse(good);
  EXPECT_EQ(c.experts, 5);
  EXPECT_EQ(c.experts_per_token, 3);
  EXPECT_EQ(c.expert_size, 21);
  EXPECT_FALSE(c.normalized_routing);
  EXPECT_EQ(c.expert_layers, (std::vector<bool>{true, false, true, true}));
  const auto with = [&](const char* key, const ordered_json& value) {
    ordered_json changed = good;
    changed[key] = value;
    return changed;
  };
  EXPECT_EQ(parse(with("decoder_sparse_step", 2)).expert_layers,
            (std::vector<bool>{false, false, false, true}));
  EXPECT_EQ(parse(with("mlp_only_layers", nullptr)).expert_layers, std::vector<bool>(4, true));
  EXPECT_EQ(parse(with("num_local_experts", 5)).experts, 5);
  EXPECT_ERROR(parse(with("num_local_experts", 4)), 2, "num_local_experts: is 4");
  EXPECT_ERROR(parse(with("num_experts_per_tok", 6)), 2, "num_experts_per_tok");
  EXPECT_ERROR(parse(with("output_router_logits", true)), 2, "output_router_logits: is true");
  EXPECT_ERROR(parse(with("mlp_only_layers", 1)), 2, "mlp_only_layers");
  EXPECT_ERROR(parse(with("num_experts", 0)), 2, "num_experts");
}

TEST(ExpertTargets, MatchWhatPeftMatches) {
  const ModelConfig model = parse(config_of("peft/qwen3_moe_dense"));
  const auto modules = linear_modules(model);
  const auto others = other_modules(model);
  int checked = 0, refused = 0;
  for (const ordered_json& c : load_json(golden("target_matching_moe.json"))) {
    SCOPED_TRACE(c["settings"].dump());
    ordered_json settings = c["settings"];
    settings["peft_type"] = "LORA";
    const auto choose = [&](PeftConfig& peft) {
      convert_expert_targets(peft.config, modules, others, "here");
      return match_peft_targets(peft, modules, "here", others);
    };
    PeftConfig peft = parse_peft_config(settings.dump(), "adapter_config.json");
    if (!c.contains("matched")) {
      EXPECT_ERROR(choose(peft), 2, "here");
      ++refused;
      continue;
    }
    const auto chosen = choose(peft);
    EXPECT_EQ(chosen.size(), c["matched"].size());
    for (const LinearModule& m : chosen) {
      ASSERT_TRUE(c["matched"].contains(m.name)) << m.name;
      const ordered_json& expected = c["matched"][m.name];
      EXPECT_EQ(module_rank(peft.config, m.name), expected["r"].get<int64_t>()) << m.name;
      EXPECT_EQ(module_alpha(peft.config, m.name), expected["alpha"].get<double>()) << m.name;
      ++checked;
    }
  }
  EXPECT_GT(checked, 80);
  EXPECT_EQ(refused, 2);
}

class Experts : public testing::TestWithParam<const char*> {
 protected:
  std::unique_ptr<BaseModel> base = BaseModel::open((golden(GetParam()) / "model").string());
  std::vector<LinearModule> modules = linear_modules(base->config());
  Adapter adapter = read_adapter(golden(GetParam()) / "adapter", modules);
  test::TempDir scratch;
};

// Names and bytes of every tensor.
std::map<std::string, std::string> contents(const fs::path& dir) {
  const auto file = SafetensorsFile::open(dir / "adapter_model.safetensors");
  std::map<std::string, std::string> all;
  for (const TensorInfo& t : file.tensors())
    all[t.name] = std::string(file.data(t), t.bytes) + ordered_json(t.shape).dump();
  return all;
}

TEST_P(Experts, AdapterIsWrittenAsPeftWroteIt) {
  export_peft(adapter, scratch / "again");
  EXPECT_EQ(contents(scratch / "again"), contents(golden(GetParam()) / "adapter"));
  const ordered_json ours = load_json(fs::path(scratch / "again") / "adapter_config.json");
  const ordered_json theirs = load_json(golden(GetParam()) / "adapter" / "adapter_config.json");
  for (const char* key : {"target_modules", "target_parameters", "rank_pattern", "alpha_pattern"})
    EXPECT_EQ(ours[key], theirs[key]) << key;
  const auto lines = inspect_adapter(scratch / "again");
  EXPECT_NE(lines[2].find("target parameters"), std::string::npos) << lines[2];
}

// delta[e](o,i) = scaling sum_k B[o, k E + e] A[e r + k, i] (PEFT's einsum "o r e, e r i -> e o
// i").
TEST_P(Experts, MergeIsPeftsFormula) {
  ExportOptions options;
  options.dtype = DType::F32;
  export_merged(*base, adapter, scratch / "merged", options);
  const auto merged = BaseModel::open(scratch / "merged");
  std::map<std::string, const AdapterModule*> by_name;
  for (const AdapterModule& m : adapter.modules) by_name[m.name] = &m;
  int changed = 0;
  for (const BaseModel::Tensor& t : base->tensors()) {
    const WeightSlice before = base->whole(t.name), after = merged->whole(t.name);
    const WeightFactors f = t.name.ends_with(".weight") ? weight_factors(t.name) : WeightFactors{};
    const auto it = by_name.find(f.module);
    const AdapterModule* m = it == by_name.end() ? nullptr : it->second;
    changed += m != nullptr;
    const int64_t e = std::max<int64_t>(f.expert, 0), r = m ? m->lora_rank() : 0;
    const int64_t first = m && f.second_half ? m->out_features / 2 : 0;
    for (int64_t o = 0; o < t.rows(); ++o)
      for (int64_t i = 0; i < t.cols(); ++i) {
        double expected = load_scalar(before.matrix.at(o, 0), t.dtype, i);
        for (int64_t k = 0; k < r; ++k)
          expected += adapter.scaling(*m) *
                      m->b[size_t((first + o) * m->rank + k * m->experts + e)] *
                      m->a[size_t((e * r + k) * m->in_features + i)];
        ASSERT_NEAR(load_scalar(after.matrix.at(o, 0), DType::F32, i), expected, 1e-5) << t.name;
      }
  }
  EXPECT_GT(changed, int(adapter.modules.size()));
}

TEST_P(Experts, VllmNamesHoldTheSameUpdate) {
  const Adapter vllm = for_vllm(adapter);
  std::map<std::string, const AdapterModule*> by_name;
  for (const AdapterModule& m : vllm.modules) {
    by_name[m.name] = &m;
    EXPECT_EQ(m.rank, vllm.config.rank);
    EXPECT_EQ(int64_t(m.a.size()), m.rank * m.in_features);
  }
  export_peft(vllm, scratch / "vllm");
  EXPECT_TRUE(contents(scratch / "vllm")
                  .count("base_model.model.model.layers.2.mlp.experts.3.up_proj.lora_A.weight") ||
              contents(scratch / "vllm")
                  .count("base_model.model.model.layers.1.mlp.experts.3.up_proj.lora_A.weight"));
  EXPECT_TRUE(
      load_json(fs::path(scratch / "vllm") / "adapter_config.json")["rank_pattern"].empty());
  for (const AdapterModule& m : adapter.modules) {
    if (!m.name.ends_with("experts.gate_up_proj")) continue;
    const int64_t e = 2, o = 3, i = 5, r = m.lora_rank(), width = m.out_features / 2;
    const AdapterModule& up = *by_name.at(experts_of(m.name) + ".2.up_proj");
    double expected = 0, got = 0;
    for (int64_t k = 0; k < r; ++k)
      expected += adapter.scaling(m) * m.b[size_t((width + o) * m.rank + k * m.experts + e)] *
                  m.a[size_t((e * r + k) * m.in_features + i)];
    for (int64_t k = 0; k < up.rank; ++k)
      got +=
          vllm.scaling(up) * up.b[size_t(o * up.rank + k)] * up.a[size_t(k * up.in_features + i)];
    EXPECT_NEAR(got, expected, 1e-6);
  }
}
INSTANTIATE_TEST_SUITE_P(Cases, Experts, testing::ValuesIn(kCases));

TEST(ExpertAdapters, AreRefusedByName) {
  const test::TempDir scratch;
  const fs::path dir = scratch / "adapter";
  fs::copy(golden("peft/qwen3_moe/adapter"), dir);
  const ordered_json good = load_json(dir / "adapter_config.json");
  const auto modules = linear_modules(parse(config_of("peft/qwen3_moe")));
  const auto refuse = [&](const char* key, const ordered_json& value, const char* part,
                          const std::vector<LinearModule>& of) {
    ordered_json changed = good;
    changed[key] = value;
    spill(dir / "adapter_config.json", changed.dump());
    EXPECT_ERROR(read_adapter(dir, of), 2, part);
  };
  refuse("lora_dropout", 0.1, "lora_dropout is 0.1", modules);
  refuse("target_parameters", "down_proj", "target_parameters is a single string", modules);
  refuse("target_parameters", {"gate.weight", "down_proj"}, "base_layer", modules);
  refuse("rank_pattern", ordered_json::object(), "has the shape (36, 48)", modules);
  refuse("target_parameters", {"gate_up_proj", "down_proj", "gate.weight", "q_proj.weight"},
         "name that in target_modules", modules);
  // Of a base with another number of experts, and of one without.
  ordered_json fewer = config_of("peft/qwen3_moe");
  fewer["num_experts"] = 5;
  refuse("r", 3, "has the shape", linear_modules(parse(fewer)));
  refuse("r", 3, "", linear_modules(parse(config_of("peft/qwen3"))));
}

}  // namespace
}  // namespace lorashard
