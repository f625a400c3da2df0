// Vocabulary-parallel embedding look-up and its gradient.
#pragma once

#include "kernels/stream.h"
#include "kernels/tensor.h"

namespace lorashard {

// y(T,H) = table[ids[t] - first_row] * factor where the row lies in this rank's table(V,H), else 0.
// An all-reduce over the tensor-parallel ranks completes it. table: F32, BF16 or F16.
void embedding_forward(Stream& stream, Matrix y, const int32_t* ids, ConstMatrix table,
                       int64_t first_row, float factor);
// d_table[ids[t] - first_row] += factor * dy(T,H)[t] for each t whose row lies in this rank's
// d_table(V,H) F32. A row's tokens are added in their order: the same bits in every run and with
// any number of threads. dy: F32 or BF16.
void embedding_backward(Stream& stream, Matrix d_table, const int32_t* ids, ConstMatrix dy,
                        int64_t first_row, float factor);

}  // namespace lorashard
