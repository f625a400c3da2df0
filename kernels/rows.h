// Picking rows or columns of a matrix and putting them back.
#pragma once

#include "kernels/stream.h"
#include "kernels/tensor.h"

namespace lorashard {

// y(R,N) = x[rows[r]]. Same type.
void gather_rows(Stream& stream, Matrix y, ConstMatrix x, const int32_t* rows);
// y(T,N) = 0, then y[rows[r]] = x(R,N)[r]. Same type; rows are distinct.
void scatter_rows(Stream& stream, Matrix y, ConstMatrix x, const int32_t* rows);

// Column k of x(T,K) and column cols[k] - first_col of y(T,N) are a pair where y has that column.
// The others of x stand for columns that other ranks hold. F32; the columns of y are distinct.
// put: y's column becomes x's. take: x's becomes y's, which becomes 0; without a pair x's becomes
// 0.
void put_columns(Stream& stream, Matrix y, ConstMatrix x, const int32_t* cols, int64_t first_col);
void take_columns(Stream& stream, Matrix x, Matrix y, const int32_t* cols, int64_t first_col);

}  // namespace lorashard
