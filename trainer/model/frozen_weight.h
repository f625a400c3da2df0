// A frozen weight as it is stored, and what a model does with it. Callers know its logical shape
// (N,K) alone: how the values lie in memory is known here.
#pragma once

#include "kernels/stream.h"
#include "kernels/tensor.h"

namespace lorashard {

// W(N,K): this rank's part, in the base's type. Not owned.
struct FrozenWeight {
  ConstMatrix matrix;       // (N,K), or (K,N)
  bool transposed = false;  // whether it lies as (K,N)
};

// y(T,N) = x(T,K) W^T [+ bias(1,N), unless it is empty].
void frozen_forward(Stream& stream, Matrix y, ConstMatrix x, const FrozenWeight& w,
                    ConstMatrix bias = {});
// dx(T,K) = dy(T,N) W + beta * dx.
void frozen_backward(Stream& stream, Matrix dx, ConstMatrix dy, const FrozenWeight& w,
                     float beta = 0);
// squares(1,N) F32: the sum of squares of each row of W.
void frozen_row_squares(Stream& stream, Matrix squares, const FrozenWeight& w);
// The embedding: y[t] = scale * W[ids[t] - first_row] where this rank holds that row, else 0.
void frozen_rows(Stream& stream, Matrix y, const int32_t* ids, const FrozenWeight& w,
                 int64_t first_row, float scale);

}  // namespace lorashard
