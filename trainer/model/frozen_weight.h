// A frozen weight as it is stored, and what a model does with it. Callers know its logical shape
// (N,K) alone: how the values lie in memory is known here.
#pragma once

#include "kernels/stream.h"
#include "kernels/tensor.h"

namespace lorashard {

// W(N,K): this rank's part, in the base's type. Not owned.
struct FrozenWeight {
  ConstMatrix matrix;
  int64_t out_features() const { return matrix.rows; }
  int64_t in_features() const { return matrix.cols; }
};

// y(T,N) = x(T,K) W^T [+ bias(1,N), unless it is empty].
void frozen_forward(Stream& stream, Matrix y, ConstMatrix x, const FrozenWeight& w,
                    ConstMatrix bias = {});
// dx(T,K) = dy(T,N) W + beta * dx.
void frozen_backward(Stream& stream, Matrix dx, ConstMatrix dy, const FrozenWeight& w,
                     float beta = 0);
// y(T,K) = scale * row ids[t] - first_row of W where this rank holds it, else 0: the embedding.
void frozen_rows(Stream& stream, Matrix y, const int32_t* ids, const FrozenWeight& w,
                 int64_t first_row, float scale);

}  // namespace lorashard
