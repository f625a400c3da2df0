// Sums over the rows of each column, and columns times factors of their own: the gradients of a
// bias and of DoRA's magnitudes, and DoRA's scaling of outputs.
#pragma once

#include "kernels/stream.h"
#include "kernels/tensor.h"

namespace lorashard {

// sums(1,N) += sum over t of x(t,N), or of x(t,N) y(t,N) unless y is empty. sums: F32; x, y: F32 or
// BF16. The order of summation depends on the shape alone.
void add_column_sums(Stream& stream, Matrix sums, ConstMatrix x, ConstMatrix y = {});

// y(T,N) = x(T,N) * factors(1,N), or += when accumulate. x, y: F32 or BF16, may alias; factors:
// F32.
void scale_columns(Stream& stream, Matrix y, ConstMatrix x, ConstMatrix factors,
                   bool accumulate = false);

}  // namespace lorashard
