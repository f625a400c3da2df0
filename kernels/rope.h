// Rotary position embedding (Su et al. 2021), half-split as in Hugging Face's rotate_half.
#pragma once

#include "kernels/stream.h"
#include "kernels/tensor.h"

namespace lorashard {

// Rotates in place each head of x(T, heads*D): with c, s = cos/sin of the row's position,
//   x1' = x1 c - x2 s,  x2' = x2 c + x1 s,  x1 = first, x2 = second half of the first 2R columns.
// cos_sin: (P, 2R) F32, row p holds R cosines then R sines (already times the attention factor);
// positions: T values in [0, P). inverse rotates back, which is the gradient.
void rope(Stream& stream, Matrix x, int64_t heads, const int32_t* positions, ConstMatrix cos_sin,
          bool inverse);

}  // namespace lorashard
