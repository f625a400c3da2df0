// Where in a text a token comes from.
#pragma once

#include <cstdint>

namespace lorashard {

// Bytes [begin, end) of the text as it was given, whole characters. Tokens that split a character
// have the same span, and so may tokens that a normalizer made of one. {-1, -1}: from no text, put
// there by the post-processor.
struct TextSpan {
  int64_t begin = -1, end = -1;
  bool special() const { return begin < 0; }
  bool operator==(const TextSpan&) const = default;
};

}  // namespace lorashard
