// target_modules against what PEFT itself matched, and the refusals.
#include "checkpoint/peft_config.h"
#include "tests/checkpoint/adapter_fixtures.h"

namespace lorashard {
namespace {

using nlohmann::ordered_json;

std::vector<std::string> names_of(const std::vector<LinearModule>& modules) {
  std::vector<std::string> names;
  for (const LinearModule& m : modules) names.push_back(m.name);
  return names;
}

// Two layers of a Llama.
std::vector<LinearModule> modules() { return golden_modules(); }

std::vector<std::string> match(const std::vector<std::string>& targets, bool regex,
                               const std::vector<std::string>& excluded = {},
                               bool exclude_regex = false) {
  return names_of(
      match_targets(modules(), targets, regex, excluded, "c.textproto:3:5", exclude_regex));
}

TEST(TargetMatch, MatchesWhatPeftMatches) {
  int checked = 0, refused = 0;
  for (const ordered_json& model : load_json(golden("target_matching.json"))) {
    const fs::path config = golden(model["model"].get<std::string>()) / "config.json";
    const auto linear = linear_modules(parse_model_config(slurp(config), config.string()));
    for (const ordered_json& c : model["cases"]) {
      SCOPED_TRACE(c["settings"].dump());
      ordered_json settings = c["settings"];
      settings["peft_type"] = "LORA";
      const PeftConfig peft = parse_peft_config(settings.dump(), "adapter_config.json");
      // Where PEFT adapts the head or the embedding we refuse; where it fails we fail.
      if (!c.contains("matched") || c["matched"].contains("lm_head") ||
          c["matched"].contains("model.embed_tokens")) {
        EXPECT_ERROR(match_peft_targets(peft, linear, "here"), 2, "here");
        ++refused;
        continue;
      }
      const auto chosen = match_peft_targets(peft, linear, "here");
      EXPECT_EQ(chosen.size(), c["matched"].size());
      for (const LinearModule& m : chosen) {
        ASSERT_TRUE(c["matched"].contains(m.name)) << m.name;
        const ordered_json& expected = c["matched"][m.name];
        // Ours are tried in sorted order; read_adapter settles where that differs from the file's.
        if (settings.value("rank_pattern", ordered_json::object()).size() <= 1) {
          EXPECT_EQ(module_rank(peft.config, m.name), expected["r"].get<int64_t>()) << m.name;
          EXPECT_EQ(module_alpha(peft.config, m.name), expected["alpha"].get<double>()) << m.name;
        }
        ++checked;
      }
    }
  }
  EXPECT_GT(checked, 100);
  EXPECT_GT(refused, 5);
}

TEST(TargetMatch, AllLinearAloneInAListMeansTheSame) {
  EXPECT_EQ(match({"all-linear"}, false), names_of(modules()));
  EXPECT_EQ(match({"All-Linear"}, true), names_of(modules()));
}

TEST(TargetMatch, NamesTheTargetsAndTheChoiceWhenNothingMatches) {
  const Caught c = error_of([] { match({"query", "value"}, false); });
  EXPECT_EQ(c.status, 2);
  EXPECT_EQ(c.text.find("c.textproto:3:5: "), 0u) << c.text;
  for (const char* part : {"\"query\"", "\"value\"", "\"q_proj\"", "\"down_proj\""})
    EXPECT_NE(c.text.find(part), std::string::npos) << c.text;
  EXPECT_ERROR(match({"q_proj"}, true), 2, "regular expression for the whole name");
  EXPECT_ERROR(match({"q_proj"}, false, {"q_proj"}), 2, "exclude_modules \"q_proj\" leaves no");
  EXPECT_ERROR(match({}, false), 2, "target_modules is empty");
}

TEST(TargetMatch, RefusesWhatIsNoLinearLayer) {
  for (const char* target :
       {"lm_head", "embed_tokens", "norm", "input_layernorm", "post_attention_layernorm", "mlp",
        "self_attn", "0", "model", "self_attn.q_norm", "k_norm"})
    EXPECT_ERROR(match({target, "q_proj"}, false), 2, target);
  EXPECT_ERROR(match({".*"}, true), 2, "LoRA is not supported");
  EXPECT_ERROR(match({".*_proj|lm_head"}, true), 2, "lm_head");
  EXPECT_ERROR(match({".*(q_proj|tokens)"}, true), 2, "model.embed_tokens");
  // Excluded, they do no harm, as in PEFT.
  EXPECT_EQ(match({"lm_head", "q_proj"}, false, {"lm_head"}), match({"q_proj"}, false));
}

TEST(TargetMatch, RegexIsPythons) {
  EXPECT_EQ(match({R"(.*\.(?P<kind>q|v)_proj)"}, true), match({"q_proj", "v_proj"}, false));
  // The whole name must match, also through a shorter alternative.
  EXPECT_EQ(match({R"(model\.layers\.1\.mlp\.(up|up_proj))"}, true),
            (std::vector<std::string>{"model.layers.1.mlp.up_proj"}));
  EXPECT_ERROR(match({"(q_proj"}, true), 2, "is not a regular expression");
  EXPECT_ERROR(match({"q_proj"}, false, {"*"}, true), 2, "is not a regular expression");
  EXPECT_ERROR(match({"(((.*)*)*)*x"}, true), 2, "");  // explodes, and ends
}

}  // namespace
}  // namespace lorashard
