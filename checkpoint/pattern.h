// Regular expressions in Python's syntax, as PEFT's settings use them.
#pragma once

#include <memory>
#include <optional>
#include <string>

namespace lorashard {

class Pattern {
 public:
  // `where` names the setting in errors (status 2): a broken expression, or one that takes too many
  // steps on a name.
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

}  // namespace lorashard
