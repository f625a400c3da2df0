#include "trainer/data/tokenizer/utf8.h"

#include <cstring>

namespace lorashard {
namespace {

struct Sequence {
  int length;  // bytes of the well-formed sequence, or of the maximal ill-formed part
  bool valid;
};

// The sequence at text[0]. The second byte's range depends on the lead (Unicode, table 3-7).
Sequence scan_sequence(const unsigned char* text, size_t size) {
  const unsigned lead = text[0];
  if (lead < 0x80) return {1, true};
  int length;
  unsigned low = 0x80, high = 0xBF;
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  } else {
    return {1, false};
  }
  for (int i = 1; i < length; ++i) {
    if (static_cast<size_t>(i) >= size || text[i] < low || text[i] > high) return {i, false};
    low = 0x80;
    high = 0xBF;
  }
  return {length, true};
}

}  // namespace

size_t find_invalid_utf8(std::string_view text) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(text.data());
  const size_t size = text.size();
  size_t i = 0;
  while (i < size) {
    if (i + 8 <= size) {
      uint64_t word;
      std::memcpy(&word, bytes + i, 8);
      if ((word & 0x8080808080808080u) == 0) {
        i += 8;
        continue;
      }
    }
    const Sequence sequence = scan_sequence(bytes + i, size - i);
    if (!sequence.valid) return i;
    i += static_cast<size_t>(sequence.length);
  }
  return kValidUtf8;
}

std::string replace_invalid_utf8(std::string_view bytes) {
  std::string text;
  text.reserve(bytes.size());
  for (size_t i = 0; i < bytes.size();) {
    const auto* at = reinterpret_cast<const unsigned char*>(bytes.data()) + i;
    const Sequence sequence = scan_sequence(at, bytes.size() - i);
    if (sequence.valid) {
      text.append(bytes.substr(i, static_cast<size_t>(sequence.length)));
    } else {
      text += "\xEF\xBF\xBD";
    }
    i += static_cast<size_t>(sequence.length);
  }
  return text;
}

}  // namespace lorashard
