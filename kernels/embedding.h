// Vocabulary-parallel embedding look-up.
#pragma once

#include "kernels/stream.h"
#include "kernels/tensor.h"

namespace lorashard {

// y(T,H) = table[ids[t] - first_row] * factor where the row lies in this rank's table(V,H), else 0.
// An all-reduce over the tensor-parallel ranks completes it. table: F32, BF16 or F16.
void embedding_forward(Stream& stream, Matrix y, const int32_t* ids, ConstMatrix table,
                       int64_t first_row, float factor);

}  // namespace lorashard
