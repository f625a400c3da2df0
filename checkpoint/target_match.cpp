// target_modules as PEFT matches them (peft/tuners/tuners_utils.py, check_target_module_exists).
#include <algorithm>
#include <optional>
#include <set>

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
  Matcher(const std::vector<std::string>& names, bool regex, const std::string& where)
      : names_(names) {
    if (regex && !names.empty()) pattern_.emplace(names[0], where);
  }
  bool matches(const std::string& module) const {
    if (pattern_) return pattern_->matches_whole(module);
    return std::any_of(names_.begin(), names_.end(),
                       [&](const std::string& t) { return names_module(t, module); });
  }

 private:
  const std::vector<std::string>& names_;
  std::optional<Pattern> pattern_;
};

// Modules that exist around the linear layers and that LoRA here does not adapt: PEFT would refuse
// them, or add factors to the embedding or the head.
std::vector<std::string> other_modules(const std::vector<LinearModule>& modules) {
  std::set<std::string> names = {"lm_head"};
  for (const LinearModule& m : modules) {
    names.insert(m.name.substr(0, m.name.find('.')) + ".embed_tokens");
    names.insert(m.name.substr(0, m.name.find('.')) + ".norm");
    names.insert(m.name.substr(0, m.name.find('.')) + ".rotary_emb");
    for (size_t dot = m.name.find('.'); dot != std::string::npos; dot = m.name.find('.', dot + 1)) {
      const std::string prefix = m.name.substr(0, dot);
      names.insert(prefix);
      if (!std::isdigit(static_cast<unsigned char>(prefix.back()))) continue;
      for (const char* norm : {".input_layernorm", ".post_attention_layernorm"})
        names.insert(prefix + norm);
    }
  }
  return {names.begin(), names.end()};
}

std::string join(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& n : names) text += (text.empty() ? "\"" : ", \"") + n + "\"";
  return text;
}

std::string suffixes(const std::vector<LinearModule>& modules) {
  std::vector<std::string> last;
  for (const LinearModule& m : modules) {
    const std::string s = m.name.substr(m.name.rfind('.') + 1);
    if (std::find(last.begin(), last.end(), s) == last.end()) last.push_back(s);
  }
  return join(last);
}

std::string lower(std::string s) {
  for (char& c : s) c = char(std::tolower(static_cast<unsigned char>(c)));
  return s;
}

}  // namespace

std::vector<LinearModule> match_targets(const std::vector<LinearModule>& modules,
                                        const std::vector<std::string>& targets, bool regex,
                                        const std::vector<std::string>& excluded,
                                        const std::string& where, bool exclude_regex) {
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
      if (!matches(m.name)) continue;
      if (exclude.matches(m.name))
        any_excluded = true;
      else
        chosen.push_back(m);
    }
  };

  // No module has this name, so that a list of it alone can mean nothing else.
  if (targets.size() == 1 && lower(targets[0]) == "all-linear") {
    choose([](const std::string&) { return true; });
  } else {
    const Matcher target(targets, regex, where);
    choose([&](const std::string& name) { return target.matches(name); });
    for (const std::string& other : other_modules(modules))
      if (target.matches(other) && !exclude.matches(other))
        fail_input(where, "target_modules " + join(targets) + " names " + other +
                              ", where LoRA is not supported; the linear layers are " +
                              suffixes(modules));
    if (!regex)
      for (const std::string& t : targets)
        for (const char* norm : {"q_norm", "k_norm"})
          if (names_module(norm, t))
            fail_input(where, "target_modules names " + t +
                                  ", where LoRA is not supported; the "
                                  "linear layers are " +
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

}  // namespace lorashard
