#include "trainer/run/lora_plan.h"

#include <set>

#include "checkpoint/adapter_base.h"
#include "checkpoint/pattern.h"
#include "configs/error.h"

namespace lorashard {
namespace {

std::set<std::string> names(const std::vector<LinearModule>& modules) {
  std::set<std::string> result;
  for (const LinearModule& m : modules) result.insert(m.name);
  return result;
}

// Error at `setting` if the config sets it and it differs from what the adapter says.
template <class T>
void must_agree(const Config& config, const std::string& setting, const T& ours, const T& theirs,
                const std::string& what) {
  if (config.locations.contains(setting) && ours != theirs) {
    fail_input(config.where(setting),
               setting + " differs from the adapter of lora.init_from, which has " + what +
                   "; leave the setting out or set it to that");
  }
}

// That each expression is one, at its setting.
void check_expressions(const Config& config, const AdapterConfig& c) {
  if (c.target_regex) Pattern(c.target_modules[0], config.where("lora.target_modules"));
  if (c.exclude_regex) Pattern(c.exclude_modules[0], config.where("lora.exclude_modules"));
  for (const auto& [key, rank] : c.rank_pattern)
    module_pattern(key, config.where("lora.rank_pattern." + key));
  for (const auto& [key, alpha] : c.alpha_pattern)
    module_pattern(key, config.where("lora.alpha_pattern." + key));
  for (const std::string& p : c.layers_pattern) Pattern(p, config.where("lora.layers_pattern"));
}

// What embedding and head cannot be adapted with, and what a tied model makes of them.
void check_vocabulary(const Config& config, const ModelConfig& model, LoraPlan& plan) {
  std::string adapted;
  for (const LinearModule& m : plan.modules) {
    if (m.role == ModuleRole::Layer) continue;
    adapted = m.name;
    if (plan.config.use_dora)
      fail_input(config.where("lora.use_dora"),
                 "use_dora is true and target_modules adapts " + m.name +
                     ", where it is not supported; leave one of the two out");
    if (m.role == ModuleRole::Embedding && config.run.optimizer().loraplus_lr_ratio() != 1)
      fail_input(config.where("optimizer.loraplus_lr_ratio"),
                 "loraplus_lr_ratio is not 1 and target_modules adapts " + m.name +
                     ", for which LoRA+ has a rate of its own that is not supported; leave one of "
                     "the two out");
  }
  const bool any = !adapted.empty() || !plan.config.modules_to_save.empty();
  if (!model.tied_embeddings && plan.config.ensure_weight_tying)
    plan.notes.push_back(
        "lora.ensure_weight_tying has no effect: embedding and head of the model are not tied");
  if (model.tied_embeddings && any && !plan.config.ensure_weight_tying)
    plan.notes.push_back(
        "embedding and head of the model are tied, and the adapter changes one without the other, "
        "as in PEFT: a merged model has both");
}

}  // namespace

LoraPlan plan_lora(const Config& config, const BaseModel& base, const std::string& base_digest) {
  const auto& lora = config.run.lora();
  const std::vector<LinearModule> all = lora_modules(base.config());
  LoraPlan plan;
  AdapterConfig& c = plan.config;
  c.rank = lora.rank();
  c.alpha = lora.alpha();
  c.dropout = lora.dropout();
  c.target_modules.assign(lora.target_modules().begin(), lora.target_modules().end());
  c.target_regex = is_module_regex(lora.target_modules());
  // What load_config() fills in, before the base is known.
  if (lora.init_from().empty() && !config.locations.contains("lora.target_modules") &&
      c.target_modules == std::vector<std::string>{"q_proj", "v_proj"}) {
    c.target_modules = default_targets(base.config());
    plan.default_targets = c.target_modules;
  }
  c.exclude_modules.assign(lora.exclude_modules().begin(), lora.exclude_modules().end());
  c.use_rslora = lora.use_rslora();
  c.use_dora = lora.use_dora();
  c.bias = RunConfig::Lora::Bias_Name(lora.bias());
  c.exclude_regex = is_module_regex(lora.exclude_modules());
  c.layers_to_transform.assign(lora.layers_to_transform().begin(),
                               lora.layers_to_transform().end());
  c.layers_pattern.assign(lora.layers_pattern().begin(), lora.layers_pattern().end());
  for (const auto& p : lora.rank_pattern()) c.rank_pattern.emplace_back(p.key(), p.value());
  for (const auto& p : lora.alpha_pattern()) c.alpha_pattern.emplace_back(p.key(), p.value());
  c.modules_to_save.assign(lora.modules_to_save().begin(), lora.modules_to_save().end());
  if (lora.trainable_token_indices_size() > 0)
    c.trainable_token_indices.emplace_back(
        "", std::vector<int64_t>(lora.trainable_token_indices().begin(),
                                 lora.trainable_token_indices().end()));
  for (const auto& p : lora.trainable_tokens())
    c.trainable_token_indices.emplace_back(
        p.key(), std::vector<int64_t>(p.value().begin(), p.value().end()));
  c.ensure_weight_tying = lora.ensure_weight_tying();
  check_expressions(config, c);
  const std::vector<std::string> others = other_modules(base.config());
  const auto match = [&](const AdapterConfig& by) {
    return match_targets(by, all, config.where("lora.target_modules"), others);
  };
  if (lora.init_from().empty()) {
    plan.modules = match(c);
    plan.notes = idle_selectors(c, all, others, plan.modules);
  } else {
    plan.start = read_adapter(lora.init_from(), base.config());
    check_adapter_base(*plan.start, lora.init_from(), base_digest);
    check_base_copies(lora.init_from(), base);
    const AdapterConfig& theirs = plan.start->config;
    must_agree(config, "lora.rank", c.rank, theirs.rank, "r " + std::to_string(theirs.rank));
    must_agree(config, "lora.alpha", c.alpha, theirs.alpha,
               "lora_alpha " + std::to_string(theirs.alpha));
    must_agree(config, "lora.use_rslora", c.use_rslora, theirs.use_rslora,
               theirs.use_rslora ? "use_rslora true" : "use_rslora false");
    must_agree(config, "lora.use_dora", c.use_dora, theirs.use_dora,
               theirs.use_dora ? "use_dora true" : "use_dora false");
    must_agree(config, "lora.bias", c.bias, theirs.bias, "bias \"" + theirs.bias + "\"");
    const auto ignored = [&](const char* setting) {
      fail_input(config.where(setting), std::string(setting) +
                                            " differs from the adapter of lora.init_from, which "
                                            "keeps its own; leave the setting out");
    };
    if (!c.modules_to_save.empty() && c.modules_to_save != theirs.modules_to_save)
      ignored("lora.modules_to_save");
    if (!c.trainable_token_indices.empty() &&
        c.trainable_token_indices != theirs.trainable_token_indices)
      ignored(lora.trainable_tokens_size() > 0 ? "lora.trainable_tokens"
                                               : "lora.trainable_token_indices");
    must_agree(
        config, "lora.ensure_weight_tying", c.ensure_weight_tying, theirs.ensure_weight_tying,
        theirs.ensure_weight_tying ? "ensure_weight_tying true" : "ensure_weight_tying false");
    // What counts is what the settings come to.
    AdapterConfig ours = theirs;
    if (!c.rank_pattern.empty()) ours.rank_pattern = c.rank_pattern;
    if (!c.alpha_pattern.empty()) ours.alpha_pattern = c.alpha_pattern;
    for (const AdapterModule& m : plan.start->modules) {
      if (module_rank(ours, m.name) != m.rank) ignored("lora.rank_pattern");
      if (module_alpha(ours, m.name) != m.alpha) ignored("lora.alpha_pattern");
    }
    std::vector<LinearModule> adapted = modules_with_factors(*plan.start, all);
    const auto must_leave = [&](const char* setting, bool whole_names) {
      AdapterConfig by = c;
      for (const LinearModule& m : adapted)
        by.target_modules.push_back(whole_names ? m.name : m.name.substr(m.name.rfind('.') + 1));
      if (names(match(by)) != names(adapted)) ignored(setting);
    };
    if (c.target_modules.empty() && !c.layers_to_transform.empty())
      must_leave("lora.layers_to_transform", false);
    else if (c.target_modules.empty() && !c.exclude_modules.empty())
      must_leave("lora.exclude_modules", true);
    if (!c.target_modules.empty() && names(match(c)) != names(adapted)) {
      fail_input(config.where("lora.target_modules"),
                 "chooses other modules than the adapter of lora.init_from has factors for; leave "
                 "target_modules out to take the adapter's");
    }
    plan.notes = adapter_base_notes(*plan.start, lora.init_from(), base);
    for (std::string& note : idle_selectors(c, all, others, adapted))
      plan.notes.push_back(std::move(note));
    const double dropout = c.dropout;
    c = theirs;
    c.dropout = dropout;
    plan.modules = std::move(adapted);
  }
  c.fan_in_fan_out = std::any_of(plan.modules.begin(), plan.modules.end(),
                                 [](const LinearModule& m) { return m.transposed; });
  check_trainable(c, plan.modules, model_tensors(base.config()), config.where("lora"));
  name_targets(c, all, plan.modules);
  check_saved_modules(model_tensors(base.config()), c, plan.modules, [&](const char* setting) {
    const bool by_module = lora.trainable_tokens_size() > 0;
    const std::string name = setting;
    return config.where(
        "lora." + (name == "trainable_token_indices" && by_module ? "trainable_tokens" : name));
  });
  check_vocabulary(config, base.config(), plan);
  if (c.bias != "none" && trained_tensors(model_tensors(base.config()), c, plan.modules).empty())
    plan.notes.push_back("lora.bias " + c.bias +
                         (c.bias == "all" ? " has no effect: the model has no biases"
                                          : " has no effect: no adapted module has a bias"));
  c.base_model = base.path();
  c.base_digest = base_digest;
  return plan;
}

RunConfig resolved_config(const RunConfig& run, const LoraPlan& plan) {
  RunConfig resolved = run;
  auto& lora = *resolved.mutable_lora();
  lora.set_rank(plan.config.rank);
  lora.set_alpha(plan.config.alpha);
  lora.set_use_rslora(plan.config.use_rslora);
  lora.set_use_dora(plan.config.use_dora);
  RunConfig::Lora::Bias bias = RunConfig::Lora::none;
  RunConfig::Lora::Bias_Parse(plan.config.bias, &bias);
  lora.set_bias(bias);
  if (!plan.default_targets.empty())
    lora.mutable_target_modules()->Assign(plan.default_targets.begin(), plan.default_targets.end());
  lora.clear_modules_to_save();
  for (const std::string& name : plan.config.modules_to_save) lora.add_modules_to_save(name);
  lora.clear_trainable_token_indices();
  lora.clear_trainable_tokens();
  for (const auto& [key, ids] : plan.config.trainable_token_indices) {
    if (key.empty()) {
      for (const int64_t id : ids) lora.add_trainable_token_indices(id);
      continue;
    }
    auto& tokens = *lora.add_trainable_tokens();
    tokens.set_key(key);
    for (const int64_t id : ids) tokens.add_value(id);
  }
  lora.set_ensure_weight_tying(plan.config.ensure_weight_tying);
  lora.clear_rank_pattern();
  lora.clear_alpha_pattern();
  for (const auto& [key, rank] : plan.config.rank_pattern) {
    auto& pattern = *lora.add_rank_pattern();
    pattern.set_key(key);
    pattern.set_value(rank);
  }
  for (const auto& [key, alpha] : plan.config.alpha_pattern) {
    auto& pattern = *lora.add_alpha_pattern();
    pattern.set_key(key);
    pattern.set_value(alpha);
  }
  return resolved;
}

}  // namespace lorashard
