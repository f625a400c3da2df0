// target_parameters as PEFT matches them (peft/tuners/tuners_utils.py, _inject_parameters), and its
// reading of targets that name a mixture of experts' modules as before transformers 5
// (peft/utils/transformers_weight_conversion.py, _convert_peft_config_moe).
#include <algorithm>
#include <set>

#include "checkpoint/adapter.h"
#include "checkpoint/pattern.h"
#include "configs/error.h"

namespace lorashard {
namespace {

bool names(const std::string& target, const std::string& name) {
  return name == target || name.ends_with("." + target);
}

std::string last_part(const std::string& name) { return name.substr(name.rfind('.') + 1); }

// Modules as they were before transformers 5, and the parameter that each is part of now.
struct OldName {
  const char* module;
  const char* parameter;
};
constexpr OldName kOldNames[] = {{"gate", "gate.weight"},
                                 {"gate_proj", "gate_up_proj"},
                                 {"up_proj", "gate_up_proj"},
                                 {"down_proj", "down_proj"}};

bool is_all_linear(const AdapterConfig& c) {
  std::string name = c.target_modules.size() == 1 ? c.target_modules[0] : "";
  for (char& ch : name) ch = char(std::tolower(static_cast<unsigned char>(ch)));
  return name == "all-linear";
}

// The last parts of the names that one string of target_modules chooses: PEFT's
// _resolve_string_target_modules.
std::set<std::string> resolve(const AdapterConfig& c, const std::vector<LinearModule>& modules,
                              const std::vector<std::string>& others, const std::string& where) {
  std::set<std::string> found;
  if (is_all_linear(c)) {
    for (const LinearModule& m : modules)
      if (!m.parameter) found.insert(last_part(m.name));
    for (const OldName& old : kOldNames) found.insert(old.module);
    return found;
  }
  const Pattern pattern(c.target_modules[0], where);
  const auto chooses = [&](const std::string& key) {
    const bool excluded =
        c.exclude_regex ? Pattern(c.exclude_modules[0], where).matches_whole(key)
                        : std::any_of(c.exclude_modules.begin(), c.exclude_modules.end(),
                                      [&](const std::string& name) { return names(name, key); });
    return pattern.matches_whole(key) && !excluded;
  };
  for (const LinearModule& m : modules)
    if (chooses(m.name) && last_part(m.name) != "weight") found.insert(last_part(m.name));
  for (const std::string& other : others)
    if (chooses(other)) found.insert(last_part(other));
  for (const LinearModule& m : modules) {
    if (!m.parameter) continue;
    const std::string container = m.name.substr(0, m.name.rfind('.') + 1);
    for (const OldName& old : kOldNames)
      if (last_part(m.name) == old.parameter && chooses(container + old.module))
        found.insert(old.module);
    if (m.experts == 1 && m.name.ends_with(".gate.weight") &&
        chooses(m.name.substr(0, m.name.rfind('.'))))
      found.insert("gate");
  }
  return found;
}

}  // namespace

std::vector<LinearModule> match_adapted(const AdapterConfig& c,
                                        const std::vector<LinearModule>& modules,
                                        const std::string& where,
                                        const std::vector<std::string>& others) {
  std::set<std::string> chosen;
  if (!c.target_modules.empty() || c.target_parameters.empty())
    for (const LinearModule& m : match_targets(modules, c.target_modules, c.target_regex,
                                               c.exclude_modules, where, c.exclude_regex, others))
      chosen.insert(m.name);
  for (const std::string& target : c.target_parameters)
    for (const LinearModule& m : modules) {
      if (m.parameter && names(target, m.name)) chosen.insert(m.name);
      if (!m.parameter && names(target, m.name + ".weight"))
        fail_input(where,
                   "target_parameters \"" + target + "\" names " + m.name +
                       ".weight, the weight of a linear module; name that in target_modules");
    }
  std::vector<LinearModule> result;
  std::copy_if(modules.begin(), modules.end(), std::back_inserter(result),
               [&](const LinearModule& m) { return chosen.count(m.name) > 0; });
  if (result.empty())
    fail_input(where,
               "target_parameters matches no parameter of the model (those that LoRA here "
               "adapts are the weights of a mixture of experts: gate_up_proj, down_proj and "
               "gate.weight)");
  return result;
}

void convert_expert_targets(AdapterConfig& c, const std::vector<LinearModule>& modules,
                            const std::vector<std::string>& others, const std::string& where) {
  if (c.target_modules.empty() ||
      std::none_of(modules.begin(), modules.end(), [](const auto& m) { return m.parameter; }))
    return;
  std::vector<std::string> targets = c.target_modules;
  if (c.target_regex || is_all_linear(c)) {
    const std::set<std::string> resolved = resolve(c, modules, others, where);
    if (resolved.empty()) return;
    targets.assign(resolved.begin(), resolved.end());
  }
  std::set<std::string> parameters(c.target_parameters.begin(), c.target_parameters.end());
  std::vector<std::string> remaining;
  std::set<std::string> halves;
  for (const std::string& target : targets) {
    const auto old = std::find_if(std::begin(kOldNames), std::end(kOldNames),
                                  [&](const OldName& o) { return names(o.module, target); });
    if (old == std::end(kOldNames)) {
      remaining.push_back(target);
      continue;
    }
    parameters.insert(old->parameter);
    if (old->parameter == std::string("gate_up_proj")) halves.insert(old->module);
  }
  if (halves.size() == 1)
    fail_input(where, "target_modules has " + *halves.begin() +
                          " alone; gate_proj and up_proj of the experts are one parameter, name "
                          "both (or target_parameters \"gate_up_proj\")");
  const auto set = [](auto& patterns, auto value) {
    const std::string key = R"(.*\.gate_up_proj)";
    for (auto& [pattern, old] : patterns)
      if (pattern == key) {
        old = value;
        return;
      }
    patterns.emplace_back(key, value);
  };
  if (halves.size() == 2) {
    set(c.rank_pattern, 2 * c.rank);
    set(c.alpha_pattern, 2 * c.alpha);
  }
  c.target_modules = std::move(remaining);
  c.target_regex = false;
  c.target_parameters.assign(parameters.begin(), parameters.end());
}

}  // namespace lorashard
