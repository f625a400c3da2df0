// target_modules against what PEFT itself matched, and the refusals.
#include <gmock/gmock.h>

#include <functional>

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
std::vector<std::string> others() {
  const fs::path config = golden("adapter/base/config.json");
  return other_modules(parse_model_config(slurp(config), config.string()));
}

std::vector<std::string> match(const std::vector<std::string>& targets, bool regex,
                               const std::vector<std::string>& excluded = {},
                               bool exclude_regex = false) {
  return names_of(match_targets(modules(), targets, regex, excluded, "c.textproto:3:5",
                                exclude_regex, others()));
}

TEST(TargetMatch, MatchesWhatPeftMatches) {
  int checked = 0, refused = 0;
  for (const ordered_json& model : load_json(golden("target_matching.json"))) {
    const fs::path config = golden(model["model"].get<std::string>()) / "config.json";
    const ModelConfig model_config = parse_model_config(slurp(config), config.string());
    const auto linear = linear_modules(model_config);
    const auto others = other_modules(model_config);
    for (const ordered_json& c : model["cases"]) {
      SCOPED_TRACE(c["settings"].dump());
      ordered_json settings = c["settings"];
      settings["peft_type"] = "LORA";
      const auto parse = [&] { return parse_peft_config(settings.dump(), "adapter_config.json"); };
      // Where PEFT adapts the head or the embedding we refuse; where it fails we fail.
      if (!c.contains("matched") || c["matched"].contains("lm_head") ||
          c["matched"].contains("model.embed_tokens")) {
        EXPECT_ERROR(match_targets(parse(), linear, "here", others), 2, "here");
        ++refused;
        continue;
      }
      const AdapterConfig peft = parse();
      const auto chosen = match_targets(peft, linear, "here", others);
      EXPECT_EQ(chosen.size(), c["matched"].size());
      for (const LinearModule& m : chosen) {
        ASSERT_TRUE(c["matched"].contains(m.name)) << m.name;
        const ordered_json& expected = c["matched"][m.name];
        EXPECT_EQ(module_rank(peft, m.name), expected["r"].get<int64_t>()) << m.name;
        EXPECT_EQ(module_alpha(peft, m.name), expected["alpha"].get<double>()) << m.name;
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
        "self_attn", "0", "model", "act_fn", "rotary_emb", "layers"})
    EXPECT_ERROR(match({target, "q_proj"}, false), 2, target);
  EXPECT_ERROR(match({".*"}, true), 2, "LoRA is not supported");
  EXPECT_ERROR(match({".*_proj|lm_head"}, true), 2, "lm_head");
  EXPECT_ERROR(match({R"(.*(q_proj|act_fn))"}, true), 2, "model.layers.0.mlp.act_fn");
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

// What PCRE2 and Python's re read differently, or Python refuses.
TEST(TargetMatch, RegexUnlikePythonsIsRefused) {
  const auto refused = [](const std::string& expression, const std::string& place) {
    SCOPED_TRACE(expression);
    EXPECT_ERROR(match({expression}, true), 2, place);
  };
  refused(R"(.*q_proj{,1})", R"(holds "{,1}" (character 9), a quantifier)");
  refused(R"(.*q_pro{,}j)", R"(holds "{,}")");
  refused(R"(.*q_proj{1}{1})", R"(holds "{1}" (character 12), a quantifier of a quantifier)");
  refused(R"(.*q_proj??*)", R"(holds "*")");
  refused(R"(.*\.\Qq_proj\E)", R"(holds "\Q" (character 5), an escape)");
  refused(R"(.*\x{71}_proj)", R"(holds "\x")");
  refused(R"((?-i).*q_proj)", "a group that Python");
  refused(R"(.*\hq_proj)", R"(holds "\h")");
  refused(R"(.*\Kq_proj)", R"(holds "\K")");
  refused(R"([\R].*q_proj)", R"(holds "\R")");
  refused(R"(.*\p{L}_proj)", R"(holds "\p")");
  refused(R"(.*(?<a>q)_proj)", R"(holds "(?<)");
  refused(R"(.*(?|q|v)_proj)", R"(holds "(?|")");
  refused(R"(.*(*FAIL)q_proj)", R"(holds "(*")");
  refused(R"(.*[[:alpha:]]_proj)", R"(holds "[:" (character 4), the beginning of a class)");
  refused(R"(.*(?i)Q_PROJ)", "(character 3), flags that are not at the start");
  refused(R"(.*(?&a)q_proj)", "a group that Python");
  // What both have.
  const auto chosen = match({"q_proj"}, false);
  for (const char* expression :
       {R"((?i).*Q_PROJ)", R"(.*(?i:Q)_proj)", R"(.*[^][(*{,}]_proj{0,1}(?<=q_proj))",
        R"(.*\.q_proj(?#{,1} a comment))", R"(.*\.(?P<a>q)_proj)", R"(.*\bq_pr[\w]j\Z)",
        R"((?:model)\.layers\.\d{1,2}\.self_attn\.(?!k)(?:(q))_proj(?(1)|x))", R"(.*\.q_proj\{{0})",
        R"(.*+(?<=q_proj))"})
    EXPECT_EQ(match({expression}, true), chosen) << expression;
}

std::vector<std::string> idle(const std::function<void(AdapterConfig&)>& set,
                              const std::vector<std::string>& targets = {"q_proj", "v_proj"}) {
  AdapterConfig c;
  c.target_modules = targets;
  set(c);
  const auto chosen =
      match_targets(modules(), c.target_modules, false, c.exclude_modules, "here", false, others());
  return idle_selectors(c, modules(), others(), chosen);
}

TEST(TargetMatch, SelectorsWithoutEffectAreNamed) {
  using testing::ElementsAre;
  using testing::HasSubstr;
  using testing::IsEmpty;
  const auto ranks = [](const std::vector<std::pair<std::string, int64_t>>& patterns) {
    return idle([&](AdapterConfig& c) { c.rank_pattern = patterns; });
  };
  EXPECT_THAT(ranks({{"q_proj", 2}, {"^model.layers.0.self_attn.v_proj", 3}}), IsEmpty());
  EXPECT_THAT(ranks({{"qproj", 2}}), ElementsAre(HasSubstr("rank_pattern \"qproj\" matches none")));
  EXPECT_THAT(ranks({{"^q_proj", 2}}), ElementsAre(HasSubstr("\"^q_proj\" matches none")));
  // The first decides.
  EXPECT_THAT(ranks({{"layers.0.self_attn.q_proj", 16}, {"q_proj", 2}}), IsEmpty());
  EXPECT_THAT(
      ranks({{"q_proj", 2}, {"layers.0.self_attn.q_proj", 16}}),
      ElementsAre(HasSubstr("\"layers.0.self_attn.q_proj\" has no effect: an earlier key")));
  EXPECT_THAT(idle([](AdapterConfig& c) {
                c.alpha_pattern = {{"k_proj", 64}};
              }),
              ElementsAre(HasSubstr("alpha_pattern \"k_proj\" matches none of the adapted")));
  EXPECT_THAT(idle([](AdapterConfig& c) {
                c.exclude_modules = {"o_proj", "lm_head", "head"};
              }),
              ElementsAre(HasSubstr("exclude_modules \"head\" matches no module of the model")));
  EXPECT_THAT(idle([](AdapterConfig&) {}, {"q_proj", "c_attn"}),
              ElementsAre(HasSubstr("target_modules \"c_attn\" matches no module of the model")));
}

// Whatever chose them, PEFT finds the same modules by the names that are written.
TEST(TargetMatch, TargetsAreWrittenAsNames) {
  const auto named = [](const std::vector<std::string>& targets, bool regex,
                        const std::vector<std::string>& excluded = {}) {
    AdapterConfig c;
    c.target_modules = targets;
    c.target_regex = regex;
    c.exclude_modules = excluded;
    const auto chosen = match_targets(modules(), targets, regex, excluded, "", false, others());
    name_targets(c, modules(), chosen);
    EXPECT_FALSE(c.target_regex);
    EXPECT_TRUE(c.exclude_modules.empty());
    EXPECT_EQ(match(c.target_modules, false), names_of(chosen));
    return c.target_modules;
  };
  using testing::ElementsAre;
  EXPECT_THAT(named({"q_proj", "v_proj"}, false), ElementsAre("q_proj", "v_proj"));
  EXPECT_THAT(named({"v_proj", "q_proj"}, false), ElementsAre("v_proj", "q_proj"));
  EXPECT_THAT(named({R"(.*\.(q|v)_proj)"}, true), ElementsAre("q_proj", "v_proj"));
  EXPECT_THAT(named({R"(.*\.1\..*(q|o)_proj)"}, true),
              ElementsAre("model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.o_proj"));
  EXPECT_EQ(named({"all-linear"}, false, {"layers.0.mlp.up_proj"}).size(), 7u);
  EXPECT_THAT(named({"q_proj", "nothing"}, false), ElementsAre("q_proj"));
}

TEST(TargetMatch, LayersStayWhereNamesSayTheRest) {
  using testing::ElementsAre;
  AdapterConfig c;
  c.target_modules = {"q_proj", "model.layers.0.mlp.up_proj"};
  c.layers_to_transform = {1};
  c.layers_pattern = {"layers"};
  const auto names = [&] { return names_of(match_targets(c, modules(), "here", others())); };
  EXPECT_THAT(names(), ElementsAre("model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj"))
      << "a whole name counts in any layer";
  const AdapterConfig before = c;
  name_targets(c, modules(), match_targets(c, modules(), ""));
  EXPECT_TRUE(c == before);
  c.target_modules = {"q_proj", "nothing"};
  const auto chosen = match_targets(c, modules(), "");
  name_targets(c, modules(), chosen);
  EXPECT_THAT(c.target_modules, ElementsAre("model.layers.1.self_attn.q_proj"));
  EXPECT_TRUE(c.layers_to_transform.empty() && c.layers_pattern.empty());

  c = before;
  c.layers_to_transform = {1, 7};
  c.layers_pattern = {"layers", "h"};
  EXPECT_THAT(idle_selectors(c, modules(), others(), chosen),
              ElementsAre(testing::HasSubstr("layers_to_transform 7 has no effect"),
                          testing::HasSubstr("layers_pattern \"h\" has no effect")));
  c.layers_to_transform = {7};
  c.target_modules = {"q_proj"};
  EXPECT_ERROR(match_targets(c, modules(), "here"), 2, "the model's layers are 0 to 1");
  c.layers_pattern = {"("};
  EXPECT_ERROR(match_targets(c, modules(), "here"), 2, "here");
}

}  // namespace
}  // namespace lorashard
