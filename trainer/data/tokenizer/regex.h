// Regular expressions of tokenizer.json, which are Oniguruma's, run by PCRE2.
//
// The pattern is rewritten first (regex_translate.cpp): character classes become explicit ranges
// from our own Unicode table, and what the two engines read differently is either rewritten or
// refused by name. Matching then follows the library's iteration over matches.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace lorashard {

// The PCRE2 form of an Oniguruma pattern. Errors: status 2, "WHERE: regular expression …".
std::string translate_regex(std::string_view pattern, const std::string& where);

// A literal text as a pattern.
std::string escape_regex(std::string_view literal);

struct Match {
  size_t begin, end;
  bool is_match;  // else the text between two matches
};

class Regex {
 public:
  // `pattern` is PCRE2's own (the result of translate_regex).
  Regex(const std::string& pattern, const std::string& where);
  ~Regex();
  Regex(const Regex&) = delete;
  Regex& operator=(const Regex&) = delete;

  // Covers `text` with matches and what lies between them, in order. Empty text gives one empty
  // non-match. Thread-safe. REQUIRES: text is valid UTF-8.
  void find_matches(std::string_view text, std::vector<Match>& matches) const;

 private:
  struct Code;
  std::unique_ptr<Code> code_;
};

}  // namespace lorashard
