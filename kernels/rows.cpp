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

}  // namespace lorashard
