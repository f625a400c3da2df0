#include <algorithm>
#include <cctype>
#include <cstdio>
#include <functional>
#include <optional>
#include <utility>

#include "configs/error.h"
#include "trainer/data/tokenizer/regex.h"
#include "trainer/data/tokenizer/unicode.h"
#include "trainer/data/tokenizer/utf8.h"

namespace lorashard {
namespace {

using Range = std::pair<char32_t, char32_t>;  // first and last code point
using Ranges = std::vector<Range>;

Ranges ranges_of(const std::function<bool(char32_t)>& contains) {
  Ranges ranges;
  for (char32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    if (!contains(c)) continue;
    const bool extends = !ranges.empty() && (ranges.back().second + 1 == c ||
                                             (c == 0xE000 && ranges.back().second == 0xD7FF));
    if (extends) {
      ranges.back().second = c;
    } else {
      ranges.push_back({c, c});
    }
  }
  return ranges;
}

Ranges complement(Ranges ranges) {
  std::sort(ranges.begin(), ranges.end());
  Ranges result;
  char32_t next = 0;
  for (const auto& [first, last] : ranges) {
    if (first > next) result.push_back({next, first - 1});
    next = std::max<char32_t>(next, last + 1);
  }
  if (next < 0x110000) result.push_back({next, 0x10FFFF});
  return result;
}

// The categories that a \p{NAME} means; lower-case name without spaces, '_' and '-'.
std::optional<uint32_t> category_set(const std::string& name) {
  static const char* const kShort[] = {"lu", "ll", "lt", "lm", "lo", "mn", "mc", "me", "nd", "nl",
                                       "no", "pc", "pd", "ps", "pe", "pi", "pf", "po", "sm", "sc",
                                       "sk", "so", "zs", "zl", "zp", "cc", "cf", "co", "cn"};
  const auto bits = [](int first, int last) { return ((2u << last) - 1) & ~((1u << first) - 1); };
  for (int i = 0; i <= kCn; ++i) {
    if (name == kShort[i]) return 1u << i;
  }
  if (name == "l" || name == "letter") return bits(kLu, kLo);
  if (name == "m" || name == "mark") return bits(kMn, kMe);
  if (name == "n" || name == "number") return bits(kNd, kNo);
  if (name == "p" || name == "punctuation") return bits(kPc, kPo);
  if (name == "s" || name == "symbol") return bits(kSm, kSo);
  if (name == "z" || name == "separator") return bits(kZs, kZp);
  return std::nullopt;
}

class Translator {
 public:
  Translator(std::string_view pattern, const std::string& where)
      : pattern_(pattern), where_(where) {}

  std::string run() {
    while (at_ < pattern_.size()) element();
    if (!groups_.empty()) refuse("a group that is not closed");
    return out_;
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const {
    fail_input(where_, "regular expression at offset " + std::to_string(at_) + ": " + what +
                           " is not supported");
  }
  bool more(size_t ahead = 0) const { return at_ + ahead < pattern_.size(); }
  char peek(size_t ahead = 0) const { return more(ahead) ? pattern_[at_ + ahead] : '\0'; }
  bool take(std::string_view text) {
    if (pattern_.substr(at_, text.size()) != text) return false;
    at_ += text.size();
    return true;
  }

  void element() {
    const char c = peek();
    if (c == '(') return open_group();
    if (c == ')') {
      if (groups_.empty()) refuse("')' without '('");
      atom_ = groups_.back().begin;
      groups_.pop_back();
      out_ += c;
      ++at_;
    } else if (c == '|') {
      out_ += c;
      ++at_;
      atom_ = out_.size();
    } else if (c == '[') {
      atom_ = out_.size();
      emit(bracket());
    } else if (c == '\\') {
      escape();
    } else if (c == '*' || c == '+' || c == '?') {
      out_ += c;  // with a '?' or '+' behind: lazy or possessive in both
      ++at_;
      if (peek() == '?' || peek() == '+') out_ += pattern_[at_++];
    } else if (c == '{') {
      interval();
    } else {
      atom_ = out_.size();
      if (c == '^' || c == '$' || c == '.') {
        out_ += c;
        ++at_;
      } else {
        literal(next());
      }
    }
  }

  // {n}, {n,}, {n,m}, {,m}. A '+' behind repeats the repetition, where PCRE2 reads "possessive".
  void interval() {
    size_t i = at_ + 1;
    std::string low, high;
    bool comma = false;
    while (i < pattern_.size() && std::isdigit(static_cast<unsigned char>(pattern_[i]))) {
      low += pattern_[i++];
    }
    if (i < pattern_.size() && pattern_[i] == ',') {
      comma = true;
      ++i;
      while (i < pattern_.size() && std::isdigit(static_cast<unsigned char>(pattern_[i]))) {
        high += pattern_[i++];
      }
    }
    if (i >= pattern_.size() || pattern_[i] != '}' || (low.empty() && high.empty())) {
      atom_ = out_.size();
      literal(next());
      return;
    }
    at_ = i + 1;
    out_.append(1, '{').append(low.empty() ? "0" : low);
    if (comma) out_.append(1, ',').append(high);
    out_ += '}';
    if (peek() == '?') {
      if (!comma) refuse("'{n}?'");
      out_ += pattern_[at_++];
    } else if (peek() == '+') {
      ++at_;
      out_.insert(atom_, "(?:");
      out_ += ")+";
    }
  }

  void open_group() {
    Group group{out_.size(), ignore_case()};
    if (take("(?i)")) {
      if (!out_.empty()) refuse("'(?i)' inside the pattern");
      out_ += "(?i)";
      whole_ignores_case_ = true;
      return;
    }
    static const char* const kPlain[] = {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>"};
    for (const char* form : kPlain) {
      if (!take(form)) continue;
      out_ += form;
      groups_.push_back(group);
      atom_ = out_.size();
      return;
    }
    if (take("(?i:") || take("(?-i:")) {
      group.ignore_case = pattern_[at_ - 3] != '-';
      out_ += group.ignore_case ? "(?i:" : "(?-i:";
    } else if (peek(1) == '?') {
      refuse("the group '" + std::string(pattern_.substr(at_, 4)) + "'");
    } else {
      ++at_;
      out_ += "(?:";  // captures are never used
    }
    groups_.push_back(group);
    atom_ = out_.size();
  }

  void escape() {
    atom_ = out_.size();
    const char c = peek(1);
    if (c == 'b' || c == 'B') {
      at_ += 2;
      const std::string word = class_text(word_ranges(), false);
      const std::string here = "(?<=" + word + ")(?" + (c == 'b' ? "!" : "=") + word + ")";
      const std::string there = "(?<!" + word + ")(?" + (c == 'b' ? "=" : "!") + word + ")";
      out_ += "(?:" + here + "|" + there + ")";
    } else if (c == 'A' || c == 'z' || c == 'Z') {
      at_ += 2;
      out_ += '\\';
      out_ += c;
    } else if (std::optional<Ranges> ranges = class_escape()) {
      emit(*ranges);
    } else {
      literal(escaped_character());
    }
  }

  // \s \w \d \h \p{…} and their complements; leaves at_ alone when it is none of them.
  std::optional<Ranges> class_escape() {
    Ranges ranges;
    const char c = peek(1);
    switch (c) {
      case 's':
      case 'S':
        ranges = ranges_of(is_space);
        break;
      case 'w':
      case 'W':
        ranges = word_ranges();
        break;
      case 'd':
      case 'D':
        ranges = ranges_of([](char32_t x) { return category(x) == kNd; });
        break;
      case 'h':
      case 'H':
        ranges = {{'0', '9'}, {'A', 'F'}, {'a', 'f'}};
        break;
      case 'p':
      case 'P':
        return property();
      default:
        return std::nullopt;
    }
    at_ += 2;
    return std::isupper(static_cast<unsigned char>(c)) ? complement(ranges) : ranges;
  }

  Ranges property() {
    bool negated = peek(1) == 'P';
    const size_t close = pattern_.find('}', at_);
    if (peek(2) != '{' || close == std::string_view::npos) refuse("a property without braces");
    std::string_view spelled = pattern_.substr(at_ + 3, close - at_ - 3);
    if (spelled.starts_with('^')) {
      negated = !negated;
      spelled.remove_prefix(1);
    }
    std::string name;
    for (const char c : spelled) {
      if (c == ' ' || c == '_' || c == '-') continue;
      name += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    }
    const std::optional<uint32_t> set = category_set(name);
    if (!set) refuse("the property '" + std::string(spelled) + "'");
    at_ = close + 1;
    const Ranges ranges = ranges_of([&](char32_t x) { return *set >> category(x) & 1; });
    return negated ? complement(ranges) : ranges;
  }

  // A character written as itself or escaped, at at_.
  char32_t next() {
    const char* p = pattern_.data() + at_;
    const char32_t value = next_code_point(p);
    at_ = static_cast<size_t>(p - pattern_.data());
    return value;
  }

  char32_t escaped_character() {
    if (!more(1)) refuse("a backslash at the end");
    const char c = peek(1);
    const auto single = [&](char32_t value) {
      at_ += 2;
      return value;
    };
    switch (c) {
      case 'n':
        return single('\n');
      case 'r':
        return single('\r');
      case 't':
        return single('\t');
      case 'f':
        return single('\f');
      case 'v':
        return single('\v');
      case 'a':
        return single('\a');
      case 'e':
        return single(27);
      case 'u':
        return hexadecimal(2, 4, false);
      case 'x':
        return peek(2) == '{' ? hexadecimal(3, 8, true) : hexadecimal(2, 2, false);
      default:
        break;
    }
    if (std::isalnum(static_cast<unsigned char>(c))) {
      refuse("the escape '\\" + std::string(1, c) + "'");
    }
    ++at_;
    return next();
  }

  char32_t hexadecimal(size_t skip, size_t digits, bool braces) {
    char32_t value = 0;
    size_t count = 0;
    while (count < digits && std::isxdigit(static_cast<unsigned char>(peek(skip + count)))) {
      const auto digit = static_cast<unsigned char>(std::tolower(peek(skip + count++)));
      value = value * 16 + (std::isdigit(digit) ? digit - '0' : digit - 'a' + 10);
    }
    const bool whole = braces ? count > 0 && peek(skip + count) == '}' : count == digits;
    if (!whole || value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF)) {
      refuse("this form of a code point");
    }
    // A lone \x80 and above would be a raw byte to Oniguruma.
    if (!braces && digits == 2 && value > 0x7F) refuse("'\\xHH' above 7F");
    at_ += skip + count + (braces ? 1 : 0);
    return value;
  }

  Ranges bracket() {
    ++at_;
    bool negated = false;
    if (peek() == '^') {
      negated = true;
      ++at_;
    }
    if (peek() == ']') refuse("an empty bracket");
    Ranges ranges;
    while (peek() != ']') {
      if (!more()) refuse("a bracket that is not closed");
      if (peek() == '[') refuse("a bracket inside a bracket");
      if (peek() == '&' && peek(1) == '&') refuse("'&&' in a bracket");
      if (peek() == '\\') {
        if (std::optional<Ranges> inner = class_escape()) {
          ranges.insert(ranges.end(), inner->begin(), inner->end());
          if (peek() == '-' && peek(1) != ']') refuse("a range that begins with a class");
          continue;
        }
      }
      const char32_t first = bracket_character();
      char32_t last = first;
      if (peek() == '-' && peek(1) != ']' && more(1)) {
        ++at_;
        if (peek() == '[') refuse("a bracket inside a bracket");
        last = bracket_character();
        if (last < first) refuse("a range that runs backwards");
      }
      ranges.push_back({first, last});
    }
    ++at_;
    if (ignore_case()) {
      for (const auto& [first, last] : ranges) {
        if (last > 0x7F) refuse("a class beyond ASCII that ignores case");
      }
      if (negated) refuse("a negated class that ignores case");
    }
    return negated ? complement(ranges) : ranges;
  }

  char32_t bracket_character() {
    if (peek() != '\\') return next();
    if (peek(1) == 'b') {
      at_ += 2;
      return '\b';
    }
    return escaped_character();
  }

  static Ranges word_ranges() { return ranges_of(is_regex_word); }

  static std::string hex(char32_t c) {
    char text[16];
    std::snprintf(text, sizeof(text), "\\x{%x}", static_cast<unsigned>(c));
    return text;
  }

  static std::string class_text(const Ranges& ranges, bool negated) {
    std::string text = negated ? "[^" : "[";
    for (auto [first, last] : ranges) {  // PCRE2 takes no surrogate as an end of a range
      if (first >= 0xD800 && first <= 0xDFFF) first = 0xE000;
      if (last >= 0xD800 && last <= 0xDFFF) last = 0xD7FF;
      if (last < first) continue;
      text += hex(first);
      if (last != first) text.append(1, '-').append(hex(last));
    }
    return text + "]";
  }

  void emit(const Ranges& ranges) {
    if (ignore_case() && !ranges.empty() && ranges.back().second > 0x7F) {
      refuse("a class beyond ASCII that ignores case");
    }
    out_ += class_text(ranges, false);
  }

  void literal(char32_t c) {
    if (ignore_case()) {
      // Oniguruma folds these to or from one character (ss and U+00DF), PCRE2 does not.
      if (c > 0x7F) refuse("a character beyond ASCII that ignores case");
      const char32_t lower = c >= 'A' && c <= 'Z' ? c + 32 : c;
      const char32_t before = literal_end_ == out_.size() ? last_literal_ : 0;
      if ((before == 's' && (lower == 's' || lower == 't')) ||
          (before == 'f' && (lower == 'f' || lower == 'i' || lower == 'l'))) {
        refuse("'ss', 'st', 'ff', 'fi' or 'fl' that ignores case");
      }
      last_literal_ = lower;
    }
    const bool plain = c > 0x7F || std::isalnum(static_cast<int>(c));
    if (plain) {
      append_code_point(out_, c);
    } else {
      out_ += hex(c);
    }
    literal_end_ = out_.size();
  }

  bool ignore_case() const {
    return groups_.empty() ? whole_ignores_case_ : groups_.back().ignore_case;
  }

  struct Group {
    size_t begin;  // in out_
    bool ignore_case;
  };
  std::string_view pattern_;
  const std::string& where_;
  size_t at_ = 0;
  std::string out_;
  size_t atom_ = 0;  // where in out_ the last atom begins
  char32_t last_literal_ = 0;
  size_t literal_end_ = ~size_t{0};  // in out_, behind last_literal_
  std::vector<Group> groups_;
  bool whole_ignores_case_ = false;
};

}  // namespace

std::string translate_regex(std::string_view pattern, const std::string& where) {
  if (find_invalid_utf8(pattern) != kValidUtf8) {
    fail_input(where, "regular expression is not valid UTF-8");
  }
  return Translator(pattern, where).run();
}

std::string escape_regex(std::string_view literal) {
  std::string pattern;
  for (const char c : literal) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x80 && !std::isalnum(byte)) {
      char text[16];
      std::snprintf(text, sizeof(text), "\\x{%x}", static_cast<unsigned>(byte));
      pattern += text;
    } else {
      pattern += c;
    }
  }
  return pattern;
}

}  // namespace lorashard
