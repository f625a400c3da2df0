// Character classes and case as Hugging Face tokenizers sees them, and its normalization forms.
//
// That library mixes four Unicode versions: its regular expressions know Unicode 16, Rust's own
// is_numeric and to_lowercase Unicode 17, punctuation Unicode 8, normalization forms and combining
// marks Unicode 9. Ids depend on each, so each is reproduced here: categories from a table taken
// from the library (unicode_categories.cpp), normalization from ICU restricted to code points that
// Unicode 9 had, the rest as listed differences.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace lorashard {

// General categories in the order of the table.
// clang-format off
enum Category : uint8_t {
  kLu, kLl, kLt, kLm, kLo, kMn, kMc, kMe, kNd, kNl, kNo, kPc, kPd, kPs, kPe, kPi, kPf, kPo,
  kSm, kSc, kSk, kSo, kZs, kZl, kZp, kCc, kCf, kCo, kCn
};
// clang-format on

extern const uint32_t kCategoryRuns[];  // begin * 32 + category, ascending
extern const size_t kCategoryRunCount;

// What word splitting asks of a character; one bit each.
enum CharacterKind : uint8_t { kLetter = 1, kNumber = 2, kSpace = 4 };

// Per code point: category in the low five bits, kinds above them (>> 5). 0x110000 bytes.
const uint8_t* character_table();

inline Category category(char32_t c) { return static_cast<Category>(character_table()[c] & 31); }
// Bits of CharacterKind: \p{L}, \p{N} and White_Space.
inline uint8_t character_kind(char32_t c) { return character_table()[c] >> 5; }
inline bool is_space(char32_t c) { return character_kind(c) & kSpace; }

bool is_regex_word(char32_t c);      // \w of Oniguruma
bool is_added_word(char32_t c);      // \w of Rust's regex crate: added tokens, Whitespace
bool is_numeric(char32_t c);         // Rust's char::is_numeric: Digits
bool is_punctuation(char32_t c);     // Punctuation
bool is_combining_mark(char32_t c);  // StripAccents

void append_lowercase(std::string& text, char32_t c);

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };

// True if `text` is surely in `form` already: the cheap answer for most texts.
bool is_normalized(NormalForm form, std::string_view text);
// REQUIRES: text is valid UTF-8.
std::string normalize(NormalForm form, std::string_view text);
// End of the shortest part of `text` from `from` on that is normalized on its own. REQUIRES: text
// is valid UTF-8, from < text.size() begins such a part.
size_t end_of_normalized_part(NormalForm form, std::string_view text, size_t from);

}  // namespace lorashard
