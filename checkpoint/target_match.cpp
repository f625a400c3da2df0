// target_modules as PEFT matches them (peft/tuners/tuners_utils.py, check_target_module_exists).
#include <algorithm>
#include <optional>

#include "checkpoint/adapter.h"
#include "checkpoint/pattern.h"
#include "configs/error.h"

namespace lorashard {
namespace {

bool names_module(const std::string& target, const std::string& module) {
  return module == target || module.ends_with("." + target);
}

// A list of names or suffixes, or one expression for whole names.
class Matcher {
 public:
  Matcher(std::vector<std::string> names, bool regex, const std::string& where)
      : names_(std::move(names)) {
    if (regex && !names_.empty()) pattern_.emplace(names_[0], where);
  }
  bool matches(const std::string& module) const {
    if (pattern_) return pattern_->matches_whole(module);
    return std::any_of(names_.begin(), names_.end(),
                       [&](const std::string& t) { return names_module(t, module); });
  }

 private:
  std::vector<std::string> names_;
  std::optional<Pattern> pattern_;
};

std::string join(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& n : names) text += (text.empty() ? "\"" : ", \"") + n + "\"";
  return text;
}

std::string last_part(const std::string& name) { return name.substr(name.rfind('.') + 1); }

std::string suffixes(const std::vector<LinearModule>& modules) {
  std::vector<std::string> last;
  for (const LinearModule& m : modules) {
    if (m.parameter) continue;
    const std::string s = last_part(m.name);
    if (std::find(last.begin(), last.end(), s) == last.end()) last.push_back(s);
  }
  return join(last);
}

// No module has this name, so that a list of it alone can mean nothing else.
bool is_all_linear(const std::vector<std::string>& targets) {
  if (targets.size() != 1) return false;
  std::string name = targets[0];
  for (char& c : name) c = char(std::tolower(static_cast<unsigned char>(c)));
  return name == "all-linear";
}

}  // namespace

std::vector<LinearModule> match_targets(const std::vector<LinearModule>& modules,
                                        const std::vector<std::string>& targets, bool regex,
                                        const std::vector<std::string>& excluded,
                                        const std::string& where, bool exclude_regex,
                                        const std::vector<std::string>& others) {
  if (targets.empty())
    fail_input(where, "target_modules is empty; name at least one of " + suffixes(modules) +
                          ", or \"all-linear\"");
  if (regex && targets.size() != 1)
    fail_input(where, "a regular expression for target_modules stands alone");
  const Matcher exclude(excluded, exclude_regex, where);
  std::vector<LinearModule> chosen;
  bool any_excluded = false;
  const auto choose = [&](const auto& matches) {
    for (const LinearModule& m : modules) {
      if (m.parameter || !matches(m.name)) continue;
      if (exclude.matches(m.name))
        any_excluded = true;
      else
        chosen.push_back(m);
    }
  };

  if (is_all_linear(targets)) {
    choose([](const std::string&) { return true; });
  } else {
    const Matcher target(targets, regex, where);
    choose([&](const std::string& name) { return target.matches(name); });
    for (const std::string& other : others)
      if (target.matches(other) && !exclude.matches(other))
        fail_input(where, "target_modules " + join(targets) + " names " + other +
                              ", where LoRA is not supported; the linear layers are " +
                              suffixes(modules));
  }
  if (chosen.empty() && any_excluded)
    fail_input(where, "exclude_modules " + join(excluded) + " leaves no module of target_modules " +
                          join(targets));
  if (chosen.empty())
    fail_input(where, "target_modules " + join(targets) + " matches no module" +
                          (regex ? " (a single string is a regular expression for the whole name, "
                                   "such as \".*\\\\.q_proj\")"
                                 : "") +
                          "; the model has " + suffixes(modules));
  return chosen;
}

std::vector<std::string> idle_selectors(const AdapterConfig& config,
                                        const std::vector<LinearModule>& modules,
                                        const std::vector<std::string>& others,
                                        const std::vector<LinearModule>& chosen) {
  std::vector<std::string> notes;
  const auto look_for = [&](const char* setting, const std::vector<std::string>& entries,
                            bool regex) {
    for (const std::string& entry : entries) {
      const Matcher matcher({entry}, regex, setting);
      const bool hit = std::any_of(modules.begin(), modules.end(),
                                   [&](const auto& m) { return matcher.matches(m.name); }) ||
                       std::any_of(others.begin(), others.end(),
                                   [&](const auto& name) { return matcher.matches(name); });
      if (!hit)
        notes.push_back(std::string(setting) + " \"" + entry +
                        "\" matches no module of the model and has no effect; the linear layers "
                        "are " +
                        suffixes(modules));
    }
  };
  if (!is_all_linear(config.target_modules))
    look_for("target_modules", config.target_modules, config.target_regex);
  for (const std::string& target : config.target_parameters)
    if (std::none_of(modules.begin(), modules.end(), [&](const LinearModule& m) {
          return m.parameter && names_module(target, m.name);
        }))
      notes.push_back("target_parameters \"" + target +
                      "\" matches no parameter of the model and has no effect");
  look_for("exclude_modules", config.exclude_modules, config.exclude_regex);

  const auto look_for_keys = [&](const char* setting, const auto& patterns) {
    std::vector<bool> decided(chosen.size(), false);
    for (const auto& [key, value] : patterns) {
      const Pattern pattern = module_pattern(key, setting);
      bool matches = false, decides = false;
      for (size_t i = 0; i < chosen.size(); ++i) {
        if (!pattern.matches_start(chosen[i].name)) continue;
        matches = true;
        decides = decides || !decided[i];
        decided[i] = true;
      }
      if (decides) continue;
      notes.push_back(std::string(setting) + " \"" + key + "\" " +
                      (matches ? "has no effect: an earlier key matches each of its modules first"
                               : "matches none of the adapted modules and has no effect"));
    }
  };
  look_for_keys("rank_pattern", config.rank_pattern);
  look_for_keys("alpha_pattern", config.alpha_pattern);
  return notes;
}

void name_targets(AdapterConfig& config, const std::vector<LinearModule>& all,
                  const std::vector<LinearModule>& adapted) {
  std::vector<LinearModule> modules = all, chosen = adapted;
  for (auto* list : {&modules, &chosen})  // target_parameters stays as it is
    std::erase_if(*list, [](const LinearModule& m) { return m.parameter; });
  const auto says_so = [&] {
    if (config.target_regex || is_all_linear(config.target_modules)) return false;
    for (const std::string& target : config.target_modules)
      if (std::none_of(modules.begin(), modules.end(),
                       [&](const auto& m) { return names_module(target, m.name); }))
        return false;
    const Matcher target(config.target_modules, false, "");
    return std::count_if(modules.begin(), modules.end(), [&](const auto& m) {
             return target.matches(m.name);
           }) == std::ptrdiff_t(chosen.size());
  };
  if (!says_so()) {
    const auto count = [](const std::vector<LinearModule>& list, const std::string& last) {
      return std::count_if(list.begin(), list.end(),
                           [&](const auto& m) { return last_part(m.name) == last; });
    };
    std::vector<std::string> names;
    for (const LinearModule& m : chosen) {
      const std::string last = last_part(m.name);
      const std::string name = count(chosen, last) == count(modules, last) ? last : m.name;
      if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
    }
    config.target_modules = std::move(names);
    config.target_regex = false;
  }
  config.exclude_modules.clear();
  config.exclude_regex = false;
}

}  // namespace lorashard
