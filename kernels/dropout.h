// Inverted dropout whose mask is a function of the global position of each element.
#pragma once

#include "kernels/random.h"
#include "kernels/stream.h"
#include "kernels/tensor.h"

namespace lorashard {

// Which elements of a (T,K) matrix dropout keeps: see dropout().
struct DropoutMask {
  uint64_t seed = 0;
  uint32_t site = 0;
  const uint64_t* row_keys = nullptr;  // T
  int64_t first_col = 0;
  float p = 0;
};

// y(T,K) = (or += when accumulate) x * mask / (1 - p). The mask of row t and local column j depends
// on (seed, site, row_keys[t], first_col + j) alone: row_keys identify the token in the whole run,
// site the module, first_col the column offset of this rank's slice. 0 <= p < 1. With c = first_col
// + j the element is kept where uniform01(word c % 4 of random_words(seed, Purpose::Dropout,
// row_keys[t], site * 2^32 + c / 4)) >= p.
void dropout(Stream& stream, Matrix y, ConstMatrix x, uint64_t seed, uint32_t site,
             const uint64_t* row_keys, int64_t first_col, float p, bool accumulate);

}  // namespace lorashard
