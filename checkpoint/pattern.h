// Regular expressions as Python's re reads them, which is how PEFT's settings use them.
#pragma once

#include <memory>
#include <optional>
#include <string>

namespace lorashard {

class Pattern {
 public:
  // `where` names the setting in errors (status 2): no regular expression, or one that Python's re
  // would refuse or read otherwise (checkpoint/python_regex.h); too many steps on a name.
  Pattern(const std::string& expression, const std::string& where);

  // Python's re.fullmatch: the whole of `text` matches.
  bool matches_whole(const std::string& text) const;
  // Python's re.match: a match that begins at the start of `text`.
  bool matches_start(const std::string& text) const;
  // What the group named `group` holds after re.match; nothing without a match.
  std::optional<std::string> group_of_start(const std::string& text, const char* group) const;

 private:
  bool match(const std::string& text, unsigned options, void* data) const;
  std::string expression_, where_;
  std::shared_ptr<void> code_;
};

// A key of rank_pattern or alpha_pattern, to be asked by matches_start: PEFT's get_pattern_key.
inline Pattern module_pattern(const std::string& key, const std::string& where) {
  return Pattern("(.*\\.)?(" + key + ")$", where);
}

}  // namespace lorashard
