#include "trainer/data/tokenizer/word_split.h"

#include <array>

#include "trainer/data/tokenizer/unicode.h"
#include "trainer/data/tokenizer/utf8.h"

namespace lorashard {
namespace {

constexpr std::string_view kLlama3Regex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2Regex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// The kind of the character at p (0: none of letter, number, space); p moves behind it.
inline uint8_t next_kind(const char*& p, const uint8_t* table) {
  const auto lead = static_cast<unsigned char>(*p);
  if (lead < 0x80) {
    ++p;
    return table[lead] >> 5;
  }
  return table[next_code_point(p)] >> 5;
}

// Behind the run of characters of kind `kind` that begins at p.
inline const char* skip_kind(const char* p, const char* end, uint8_t kind, const uint8_t* table) {
  while (p < end) {
    const char* next = p;
    if (next_kind(next, table) != kind) break;
    p = next;
  }
  return p;
}

// Behind a contraction ('s, 't, 're, …) at p, or p. REQUIRES: *p is an apostrophe.
const char* skip_contraction(const char* p, const char* end, bool any_case) {
  const auto at = [&](int i) -> char {
    if (end - p <= i) return 0;
    const char c = p[i];
    return any_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  };
  const char first = at(1);
  switch (first) {
    case 's':
    case 't':
    case 'm':
    case 'd':
      return p + 2;
    case 'r':
    case 'v':
      return at(2) == 'e' ? p + 3 : p;
    case 'l':
      return at(2) == 'l' ? p + 3 : p;
    default:
      // U+017F, the long s, equals s when case is ignored.
      if (any_case && end - p > 2 && p[1] == '\xC5' && p[2] == '\xBF') return p + 3;
      return p;
  }
}

// \s+(?!\S)|\s+ where the whole run of spaces is [p, run).
const char* end_of_spaces(const char* p, const char* run, const char* end) {
  if (run == end) return run;
  const char* last = previous_code_point(run);
  return last > p ? last : run;
}

const char* end_of_gpt2_word(const char* p, const char* end, const uint8_t* table) {
  if (*p == '\'') {
    const char* behind = skip_contraction(p, end, false);
    if (behind != p) return behind;
  }
  const char* next = p;
  const uint8_t kind = next_kind(next, table);
  if (kind != kSpace) return skip_kind(next, end, kind, table);
  if (*p == ' ' && next < end) {
    const char* second = next;
    const uint8_t second_kind = next_kind(second, table);
    if (second_kind != kSpace) return skip_kind(second, end, second_kind, table);
  }
  return end_of_spaces(p, skip_kind(next, end, kSpace, table), end);
}

const char* end_of_llama3_word(const char* p, const char* end, const uint8_t* table, int digits) {
  if (*p == '\'') {
    const char* behind = skip_contraction(p, end, true);
    if (behind != p) return behind;
  }
  const char* next = p;
  const uint8_t kind = next_kind(next, table);
  if (kind == kLetter) return skip_kind(next, end, kLetter, table);
  if (kind == kNumber) {
    for (int i = 1; i < digits && next < end; ++i) {
      const char* after = next;
      if (next_kind(after, table) != kNumber) break;
      next = after;
    }
    return next;
  }
  const bool newline = *p == '\r' || *p == '\n';
  uint8_t second_kind = kSpace;
  const char* second = next;
  if (next < end) second_kind = next_kind(second, table);
  if (!newline && next < end && second_kind == kLetter) {
    return skip_kind(second, end, kLetter, table);
  }
  if (kind == 0 || (*p == ' ' && next < end && second_kind == 0)) {
    const char* behind = skip_kind(kind == 0 ? next : second, end, 0, table);
    while (behind < end && (*behind == '\r' || *behind == '\n')) ++behind;
    return behind;
  }
  const char* last_newline = newline ? p : nullptr;
  const char* run = next;
  while (run < end) {
    const char* after = run;
    if (next_kind(after, table) != kSpace) break;
    if (*run == '\r' || *run == '\n') last_newline = run;
    run = after;
  }
  if (last_newline != nullptr) return last_newline + 1;
  return end_of_spaces(p, run, end);
}

}  // namespace

const std::string_view kGpt2Regex =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

std::optional<WordPattern> known_word_pattern(std::string_view regex) {
  if (regex == kGpt2Regex) return WordPattern::kGpt2;
  if (regex == kLlama3Regex) return WordPattern::kLlama3;
  if (regex == kQwen2Regex) return WordPattern::kQwen2;
  return std::nullopt;
}

const char* end_of_word(WordPattern pattern, const char* p, const char* end) {
  static const uint8_t* const table = character_table();
  if (pattern == WordPattern::kGpt2) return end_of_gpt2_word(p, end, table);
  return end_of_llama3_word(p, end, table, pattern == WordPattern::kLlama3 ? 3 : 1);
}

}  // namespace lorashard
