// UTF-8: validity, decoding and encoding of code points.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace lorashard {

inline constexpr size_t kValidUtf8 = static_cast<size_t>(-1);

// Offset of the first byte that begins no well-formed UTF-8 sequence (surrogates, overlong forms
// and values above U+10FFFF count as ill-formed), or kValidUtf8.
size_t find_invalid_utf8(std::string_view text);

// Replaces each maximal ill-formed part by U+FFFD, as the Unicode standard recommends.
std::string replace_invalid_utf8(std::string_view bytes);

// The code point at `p`; `p` moves behind it. REQUIRES: p points into valid UTF-8, before its end.
inline char32_t next_code_point(const char*& p) {
  const auto byte = [&](int i) { return static_cast<unsigned char>(p[i]); };
  const unsigned lead = byte(0);
  char32_t value;
  if (lead < 0x80) {
    value = lead;
    p += 1;
  } else if (lead < 0xE0) {
    value = (lead & 0x1F) << 6 | (byte(1) & 0x3F);
    p += 2;
  } else if (lead < 0xF0) {
    value = (lead & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F);
    p += 3;
  } else {
    value = (lead & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F);
    p += 4;
  }
  return value;
}

// Whether the byte begins a sequence of valid UTF-8.
inline bool begins_code_point(char byte) {
  return (static_cast<unsigned char>(byte) & 0xC0) != 0x80;
}

// Bytes of the sequence that `lead` begins. REQUIRES: lead begins a sequence of valid UTF-8.
inline int utf8_length(char lead) {
  const auto byte = static_cast<unsigned char>(lead);
  return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

// Begin of the code point that ends at `p`. REQUIRES: p is behind a code point of valid UTF-8.
inline const char* previous_code_point(const char* p) {
  do --p;
  while ((static_cast<unsigned char>(*p) & 0xC0) == 0x80);
  return p;
}

inline void append_code_point(std::string& text, char32_t value) {
  if (value < 0x80) {
    text += static_cast<char>(value);
  } else if (value < 0x800) {
    text += static_cast<char>(0xC0 | value >> 6);
    text += static_cast<char>(0x80 | (value & 0x3F));
  } else if (value < 0x10000) {
    text += static_cast<char>(0xE0 | value >> 12);
    text += static_cast<char>(0x80 | (value >> 6 & 0x3F));
    text += static_cast<char>(0x80 | (value & 0x3F));
  } else {
    text += static_cast<char>(0xF0 | value >> 18);
    text += static_cast<char>(0x80 | (value >> 12 & 0x3F));
    text += static_cast<char>(0x80 | (value >> 6 & 0x3F));
    text += static_cast<char>(0x80 | (value & 0x3F));
  }
}

}  // namespace lorashard
