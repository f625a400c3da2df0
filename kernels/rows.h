// Picking rows of a matrix and putting them back.
#pragma once

#include "kernels/stream.h"
#include "kernels/tensor.h"

namespace lorashard {

// y(R,N) = x[rows[r]]. Same type.
void gather_rows(Stream& stream, Matrix y, ConstMatrix x, const int32_t* rows);
// y(T,N) = 0, then y[rows[r]] = x(R,N)[r]. Same type; rows are distinct.
void scatter_rows(Stream& stream, Matrix y, ConstMatrix x, const int32_t* rows);

}  // namespace lorashard
