// docs.python.org/3.11/library/re.html against the manual page pcre2pattern.
#include "checkpoint/python_regex.h"

#include <algorithm>
#include <cctype>
#include <string_view>

#include "configs/error.h"

namespace lorashard {
namespace {

class Scanner {
 public:
  Scanner(std::string_view text, const std::string& where) : text_(text), where_(where) {}

  void run() {
    for (bool quantified = false; at_ < text_.size();) {
      const size_t begin = at_;
      if (quantifier()) {
        if (quantified) refuse(begin, "a quantifier of a quantifier, which Python refuses");
        quantified = true;
        continue;
      }
      quantified = false;
      const char c = text_[at_++];
      if (c == '\\') escape(begin);
      if (c == '[') set();
      if (c == '(') group(begin);
    }
  }

 private:
  [[noreturn]] void refuse(size_t begin, const std::string& what) const {
    fail_input(where_, "\"" + std::string(text_) + "\" holds \"" +
                           std::string(text_.substr(begin, at_ - begin)) + "\" (character " +
                           std::to_string(begin + 1) + "), " + what);
  }
  char peek(size_t ahead = 0) const {
    return at_ + ahead < text_.size() ? text_[at_ + ahead] : '\0';
  }
  size_t digits_from(size_t at) const {
    size_t end = at;
    while (end < text_.size() && std::isdigit(static_cast<unsigned char>(text_[end]))) ++end;
    return end;
  }

  // Takes a quantifier, with the "?" or "+" behind it, if one stands here.
  bool quantifier() {
    if (peek() == '*' || peek() == '+' || peek() == '?') {
      ++at_;
    } else if (peek() == '{') {
      const size_t low = digits_from(at_ + 1);
      const bool has_low = low > at_ + 1, comma = low < text_.size() && text_[low] == ',';
      const size_t end = comma ? digits_from(low + 1) : low;
      if ((!has_low && !comma) || end >= text_.size() || text_[end] != '}') return false;
      const size_t begin = at_;
      at_ = end + 1;
      if (!has_low) {
        const std::string high(text_.substr(low + 1, end - low - 1));
        refuse(begin,
               "a quantifier that Python and others read differently; write {0," + high + "}");
      }
    } else {
      return false;
    }
    if (peek() == '?' || peek() == '+') ++at_;
    return true;
  }

  // The backslash is taken.
  void escape(size_t begin) {
    const char c = peek();
    if (at_ < text_.size()) ++at_;
    constexpr std::string_view kOfBoth = "AZabBdDsSwWfnrtvx";
    if (std::isalpha(static_cast<unsigned char>(c)) && kOfBoth.find(c) == std::string_view::npos)
      refuse(begin,
             "an escape that Python's regular expressions do not have or that is not "
             "supported here");
    const auto hex = [&](size_t ahead) {
      return std::isxdigit(static_cast<unsigned char>(peek(ahead))) != 0;
    };
    if (c == 'x' && !(hex(0) && hex(1)))
      refuse(begin, "which Python reads only with two hexadecimal digits behind it");
  }

  // The opening bracket is taken; a bracket that closes is a member where it comes first.
  void set() {
    if (peek() == '^') ++at_;
    for (bool first = true; at_ < text_.size(); first = false) {
      const size_t begin = at_;
      const char c = text_[at_++];
      if (c == ']' && !first) return;
      if (c == '\\') escape(begin);
      if (c == '[' && (peek() == ':' || peek() == '.' || peek() == '=')) {
        ++at_;
        refuse(begin,
               "the beginning of a class of POSIX, which Python does not have; write the "
               "characters, such as [a-z]");
      }
    }
  }

  // The opening parenthesis is taken.
  void group(size_t begin) {
    if (peek() == '*') {
      ++at_;
      refuse(begin, "which Python does not have");
    }
    if (peek() != '?') return;
    ++at_;
    const std::string_view rest = text_.substr(at_);
    for (const std::string_view both : {":", "=", "!", "<=", "<!", ">", "P<", "P=", "#"}) {
      if (!rest.starts_with(both)) continue;
      // A comment ends at the first parenthesis that closes.
      at_ = both == "#" ? std::min(text_.find(')', at_), text_.size()) : at_ + both.size();
      return;
    }
    if (rest.starts_with("(") && digits_from(at_ + 1) > at_ + 1) return;  // (?(1)yes|no)
    size_t flags = at_;
    while (flags < text_.size() && std::string_view("imsx-").find(text_[flags]) != text_.npos)
      ++flags;
    const char end = flags < text_.size() ? text_[flags] : '\0';
    const bool any = flags > at_;
    at_ = std::min(flags + 1, text_.size());
    if (any && end == ':') return;
    const bool off = text_.substr(begin, flags - begin).find('-') != text_.npos;
    if (any && end == ')' && !off) {
      if (begin == 0) return;
      refuse(begin, "flags that are not at the start, which Python refuses");
    }
    refuse(begin,
           "a group that Python's regular expressions do not have or that is not supported "
           "here");
  }

  const std::string_view text_;
  const std::string& where_;
  size_t at_ = 0;
};

}  // namespace

void refuse_unlike_python(const std::string& expression, const std::string& where) {
  Scanner(expression, where).run();
}

}  // namespace lorashard
