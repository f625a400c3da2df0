#include "kernels/rows.h"

#include <cstring>

#include "kernels/cuda/dispatch.h"
#include "kernels/elementwise.h"
#include "kernels/profile.h"

namespace lorashard {

void gather_rows(Stream& stream, Matrix y, ConstMatrix x, const int32_t* rows) {
  if (stream.record("gather_rows", {traffic(y, y)})) return;
  LORASHARD_RETURN_ON_CUDA(stream, gather_rows(stream, y, x, rows));
  const ProfileSpan span("kernel", "gather_rows");
  const size_t bytes = size_t(y.cols * size_of(y.dtype));
#pragma omp parallel for num_threads(stream.threads())
  for (int64_t r = 0; r < y.rows; ++r) std::memcpy(y.at(r, 0), x.at(rows[r], 0), bytes);
}

void scatter_rows(Stream& stream, Matrix y, ConstMatrix x, const int32_t* rows) {
  LORASHARD_RETURN_ON_CUDA(stream, scatter_rows(stream, y, x, rows));
  const ProfileSpan span("kernel", "scatter_rows");
  fill_zero(stream, y);
  if (stream.record("scatter_rows", {traffic(x, x)})) return;
  const size_t bytes = size_t(y.cols * size_of(y.dtype));
#pragma omp parallel for num_threads(stream.threads())
  for (int64_t r = 0; r < x.rows; ++r) std::memcpy(y.at(rows[r], 0), x.at(r, 0), bytes);
}

void put_columns(Stream& stream, Matrix y, ConstMatrix x, const int32_t* cols, int64_t first_col) {
  if (stream.record("put_columns", {traffic(x, x)})) return;
  LORASHARD_RETURN_ON_CUDA(stream, put_columns(stream, y, x, cols, first_col));
  const ProfileSpan span("kernel", "put_columns");
#pragma omp parallel for num_threads(stream.threads())
  for (int64_t t = 0; t < x.rows; ++t) {
    auto* to = reinterpret_cast<float*>(y.at(t, 0));
    const auto* from = reinterpret_cast<const float*>(x.at(t, 0));
    for (int64_t k = 0; k < x.cols; ++k) {
      const int64_t c = cols[k] - first_col;
      if (c >= 0 && c < y.cols) to[c] = from[k];
    }
  }
}

void take_columns(Stream& stream, Matrix x, Matrix y, const int32_t* cols, int64_t first_col) {
  if (stream.record("take_columns", {traffic(x, x, x)})) return;
  LORASHARD_RETURN_ON_CUDA(stream, take_columns(stream, x, y, cols, first_col));
  const ProfileSpan span("kernel", "take_columns");
#pragma omp parallel for num_threads(stream.threads())
  for (int64_t t = 0; t < x.rows; ++t) {
    auto* to = reinterpret_cast<float*>(x.at(t, 0));
    auto* from = reinterpret_cast<float*>(y.at(t, 0));
    for (int64_t k = 0; k < x.cols; ++k) {
      const int64_t c = cols[k] - first_col;
      const bool here = c >= 0 && c < y.cols;
      to[k] = here ? from[c] : 0;
      if (here) from[c] = 0;
    }
  }
}

}  // namespace lorashard
