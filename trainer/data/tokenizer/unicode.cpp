#include "trainer/data/tokenizer/unicode.h"

#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/stringpiece.h>
#include <unicode/uchar.h>
#include <unicode/uniset.h>

#include <algorithm>
#include <array>
#include <memory>
#include <vector>

#include "configs/error.h"
#include "trainer/data/tokenizer/utf8.h"

namespace lorashard {
namespace {

bool is_white_space(char32_t c) {
  return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

std::vector<uint8_t> build_character_table() {
  std::vector<uint8_t> table(0x110000);
  for (size_t run = 0; run < kCategoryRunCount; ++run) {
    const uint32_t begin = kCategoryRuns[run] >> 5;
    const uint32_t end = run + 1 < kCategoryRunCount ? kCategoryRuns[run + 1] >> 5 : 0x110000;
    const auto value = static_cast<uint8_t>(kCategoryRuns[run] & 31);
    const uint8_t kind = value <= kLo ? kLetter : value >= kNd && value <= kNo ? kNumber : 0;
    std::fill(table.begin() + begin, table.begin() + end, static_cast<uint8_t>(value | kind << 5));
  }
  for (char32_t c = 0; c <= 0x3000; ++c) {
    if (is_white_space(c)) table[c] |= kSpace << 5;
  }
  return table;
}

// The Unicode version that brought `c`; new code points that ICU does not know count as newest.
int unicode_age(char32_t c) {
  UVersionInfo version;
  u_charAge(static_cast<UChar32>(c), version);
  return version[0] == 0 ? 99 : version[0];
}

struct Normalizers {
  const icu::Normalizer2* current;
  std::unique_ptr<icu::FilteredNormalizer2> unicode9;
};

const Normalizers& normalizers(NormalForm form) {
  static const std::array<Normalizers, 4> all = [] {
    UErrorCode status = U_ZERO_ERROR;
    static const icu::UnicodeSet unicode9(icu::UnicodeString("[:age=9.0:]"), status);
    std::array<Normalizers, 4> made;
    made[0].current = icu::Normalizer2::getNFCInstance(status);
    made[1].current = icu::Normalizer2::getNFDInstance(status);
    made[2].current = icu::Normalizer2::getNFKCInstance(status);
    made[3].current = icu::Normalizer2::getNFKDInstance(status);
    if (U_FAILURE(status)) fail_run("ICU", std::string("no normalizer: ") + u_errorName(status));
    for (Normalizers& one : made) {
      one.unicode9 = std::make_unique<icu::FilteredNormalizer2>(*one.current, unicode9);
    }
    return made;
  }();
  return all[static_cast<size_t>(form)];
}

}  // namespace

const uint8_t* character_table() {
  static const std::vector<uint8_t> table = build_character_table();
  return table.data();
}

bool is_added_word(char32_t c) {
  const Category value = category(c);
  if (value <= kNl || value == kPc) return true;  // letters, marks, Nd, Nl, Pc
  return c == 0x200C || c == 0x200D ||            // joiners
         (c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) ||  // Other_Alphabetic
         (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189);
}

bool is_regex_word(char32_t c) {
  // Oniguruma takes the Latin-1 superscripts and fractions for word characters, joiners not.
  if (c == 0xB2 || c == 0xB3 || c == 0xB9 || (c >= 0xBC && c <= 0xBE)) return true;
  return c != 0x200C && c != 0x200D && is_added_word(c);
}

bool is_numeric(char32_t c) {
  return (character_kind(c) & kNumber) || (c >= 0x11DE0 && c <= 0x11DE9) ||
         (c >= 0x16FF4 && c <= 0x16FF6);
}

bool is_punctuation(char32_t c) {
  if (c < 0x80) return c > 0x20 && c < 0x7F && !(character_kind(c) & (kLetter | kNumber));
  if (c == 0x166D || c == 0x111C9) return true;  // were punctuation in Unicode 8
  const Category value = category(c);
  return value >= kPc && value <= kPo && unicode_age(c) <= 8;
}

bool is_combining_mark(char32_t c) {
  if (c == 0x1CF2 || c == 0x1CF3) return true;  // were marks in Unicode 9
  const Category value = category(c);
  return value >= kMn && value <= kMe && c != 0x111C9 && unicode_age(c) <= 9;
}

void append_lowercase(std::string& text, char32_t c) {
  if (c < 0x80) {
    text += static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
    return;
  }
  if (c == 0x130) {  // the one letter whose lower case is two code points
    text += "i\xCC\x87";
    return;
  }
  // Pairs newer than Unicode 15.
  if (c == 0x1C89 || c == 0xA7CC || c == 0xA7CE || c == 0xA7D2 || c == 0xA7D4 || c == 0xA7DA) {
    c += 1;
  } else if (c == 0xA7CB) {
    c = 0x264;
  } else if (c == 0xA7DC) {
    c = 0x19B;
  } else if (c >= 0x10D50 && c <= 0x10D65) {
    c += 32;
  } else if (c >= 0x16EA0 && c <= 0x16EB8) {
    c += 27;
  } else {
    c = static_cast<char32_t>(u_tolower(static_cast<UChar32>(c)));
  }
  append_code_point(text, c);
}

bool is_normalized(NormalForm form, std::string_view text) {
  if (std::all_of(text.begin(), text.end(), [](char c) { return static_cast<int8_t>(c) >= 0; })) {
    return true;
  }
  // What today's Unicode calls normalized was so in Unicode 9 too: the marks that came later only
  // ever block less. The converse does not hold; normalize() settles that.
  UErrorCode status = U_ZERO_ERROR;
  const icu::StringPiece piece(text.data(), static_cast<int32_t>(text.size()));
  return normalizers(form).current->isNormalizedUTF8(piece, status) && U_SUCCESS(status);
}

std::string normalize(NormalForm form, std::string_view text) {
  std::string result;
  icu::StringByteSink<std::string> sink(&result, static_cast<int32_t>(text.size()));
  UErrorCode status = U_ZERO_ERROR;
  const icu::StringPiece piece(text.data(), static_cast<int32_t>(text.size()));
  normalizers(form).unicode9->normalizeUTF8(0, piece, sink, nullptr, status);
  if (U_FAILURE(status)) fail_run("ICU", std::string("normalizing: ") + u_errorName(status));
  return result;
}

size_t end_of_normalized_part(NormalForm form, std::string_view text, size_t from) {
  const icu::Normalizer2& normalizer = *normalizers(form).unicode9;
  const char* const end = text.data() + text.size();
  const char* p = text.data() + from;
  next_code_point(p);
  while (p < end) {
    const char* next = p;
    if (normalizer.hasBoundaryBefore(static_cast<UChar32>(next_code_point(next)))) break;
    p = next;
  }
  return static_cast<size_t>(p - text.data());
}

}  // namespace lorashard
