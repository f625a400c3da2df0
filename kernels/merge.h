// Rows of a merged matrix: W + scale B A, formed in fp32 and rounded once.
#pragma once

#include <cstdint>

#include "kernels/tensor.h"

namespace lorashard {

// Stored values against the fp32 sums that they were rounded from. Not finite if a value is not, or
// does not fit the stored type.
struct RoundingError {
  float max_abs = 0;        // max |stored - sum|
  float max_magnitude = 0;  // max |sum|
};

// y(M,N) = round(w(M,N) + scale * b(M,R) a(R,N)); a and b are contiguous. w and y: F32, BF16 or
// F16. With R = 0 a plain conversion. With `magnitudes` (M), DoRA's, each sum is a row's direction:
// it is divided by the row's norm, and multiplied by its magnitude. Runs on a few OpenMP threads.
RoundingError merge_rows(Matrix y, ConstMatrix w, const float* a, const float* b, int64_t lora_rank,
                         float scale, const float* magnitudes = nullptr);

}  // namespace lorashard
