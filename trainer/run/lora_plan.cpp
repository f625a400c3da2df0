#include "trainer/run/lora_plan.h"

#include <algorithm>
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
}

}  // namespace

LoraPlan plan_lora(const Config& config, const BaseModel& base, const std::string& base_digest) {
  const auto& lora = config.run.lora();
  const std::vector<LinearModule> all = linear_modules(base.config());
  LoraPlan plan;
  AdapterConfig& c = plan.config;
  c.rank = lora.rank();
  c.alpha = lora.alpha();
  c.dropout = lora.dropout();
  c.target_modules.assign(lora.target_modules().begin(), lora.target_modules().end());
  c.target_regex = is_module_regex(lora.target_modules());
  c.exclude_modules.assign(lora.exclude_modules().begin(), lora.exclude_modules().end());
  c.target_parameters.assign(lora.target_parameters().begin(), lora.target_parameters().end());
  c.use_rslora = lora.use_rslora();
  c.exclude_regex = is_module_regex(lora.exclude_modules());
  for (const auto& p : lora.rank_pattern()) c.rank_pattern.emplace_back(p.key(), p.value());
  for (const auto& p : lora.alpha_pattern()) c.alpha_pattern.emplace_back(p.key(), p.value());
  check_expressions(config, c);
  const std::vector<std::string> others = other_modules(base.config());
  const std::string where = config.where(lora.target_modules().empty() ? "lora.target_parameters"
                                                                       : "lora.target_modules");
  const auto match = [&](const AdapterConfig& by) { return match_adapted(by, all, where, others); };
  convert_expert_targets(c, all, others, where);
  if (lora.init_from().empty()) {
    plan.modules = match(c);
    plan.notes = idle_selectors(c, all, others, plan.modules);
  } else {
    plan.start = read_adapter(lora.init_from(), all);
    check_adapter_base(*plan.start, lora.init_from(), base_digest);
    const AdapterConfig& theirs = plan.start->config;
    must_agree(config, "lora.rank", c.rank, theirs.rank, "r " + std::to_string(theirs.rank));
    must_agree(config, "lora.alpha", c.alpha, theirs.alpha,
               "lora_alpha " + std::to_string(theirs.alpha));
    must_agree(config, "lora.use_rslora", c.use_rslora, theirs.use_rslora,
               theirs.use_rslora ? "use_rslora true" : "use_rslora false");
    const auto ignored = [&](const char* setting) {
      fail_input(config.where(setting), std::string(setting) +
                                            " differs from the adapter of lora.init_from, which "
                                            "keeps its own; leave the setting out");
    };
    // What counts is what the settings come to.
    AdapterConfig ours = theirs;
    if (!c.rank_pattern.empty()) ours.rank_pattern = c.rank_pattern;
    if (!c.alpha_pattern.empty()) ours.alpha_pattern = c.alpha_pattern;
    for (const AdapterModule& m : plan.start->modules) {
      if (module_rank(ours, m.name) != m.lora_rank()) ignored("lora.rank_pattern");
      if (module_alpha(ours, m.name) != m.alpha) ignored("lora.alpha_pattern");
    }
    std::vector<LinearModule> adapted = modules_with_factors(*plan.start, all);
    if (c.target_modules.empty() && !c.exclude_modules.empty()) {
      AdapterConfig by = c;
      by.target_modules.clear();
      for (const LinearModule& m : adapted)
        if (!m.parameter) by.target_modules.push_back(m.name);
      by.target_regex = false;
      by.target_parameters = theirs.target_parameters;
      if (names(match(by)) != names(adapted)) ignored("lora.exclude_modules");
    }
    if ((!c.target_modules.empty() || !c.target_parameters.empty()) &&
        names(match(c)) != names(adapted)) {
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
  if (c.dropout > 0 && std::any_of(plan.modules.begin(), plan.modules.end(),
                                   [](const LinearModule& m) { return m.parameter; }))
    fail_input(config.where("lora.dropout"),
               "lora.dropout must be 0 where the experts' or the router's parameters are adapted: "
               "PEFT has none there");
  name_targets(c, all, plan.modules);
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
