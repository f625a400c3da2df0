#include "kernels/columns.h"

#include <algorithm>
#include <array>
#include <cassert>

#include "kernels/cpu/table.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/parallel_for.h"
#include "kernels/profile.h"

namespace lorashard {
namespace {

constexpr int64_t kColumns = 256;  // at a time: floats that stay in the first cache

using Columns = std::array<float, kColumns>;

}  // namespace

void add_column_sums(Stream& stream, Matrix sums, ConstMatrix x, ConstMatrix y) {
  if (stream.record("add_column_sums", {traffic(sums, sums, x, y)})) return;
  LORASHARD_RETURN_ON_CUDA(stream, add_column_sums(stream, sums, x, y));
  const ProfileSpan span("kernel", "add_column_sums");
  const CpuKernels& cpu = cpu_kernels();
  assert(sums.rows == 1 && sums.cols == x.cols && sums.dtype == DType::F32);
  assert(!y || (y.rows == x.rows && y.cols == x.cols));
  const int64_t parts = (x.cols + kColumns - 1) / kColumns;
  const int64_t worth_a_thread = 16384 / (std::max<int64_t>(x.rows, 1) * kColumns) + 1;
  parallel_for(stream, parts, worth_a_thread, [&](int64_t begin, int64_t end) {
    Columns a, b;
    std::array<double, kColumns> sum;
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = part * kColumns, n = std::min(kColumns, x.cols - first);
      sum.fill(0);
      for (int64_t t = 0; t < x.rows; ++t) {
        cpu.convert(a.data(), DType::F32, x.at(t, first), x.dtype, n);
        if (y) cpu.convert(b.data(), DType::F32, y.at(t, first), y.dtype, n);
        for (int64_t c = 0; c < n; ++c)
          sum[size_t(c)] += y ? double(a[size_t(c)]) * double(b[size_t(c)]) : double(a[size_t(c)]);
      }
      float* to = reinterpret_cast<float*>(sums.at(0, first));
      for (int64_t c = 0; c < n; ++c) to[c] = float(double(to[c]) + sum[size_t(c)]);
    }
  });
}

void scale_columns(Stream& stream, Matrix y, ConstMatrix x, ConstMatrix factors, bool accumulate) {
  if (stream.record("scale_columns",
                    {accumulate ? traffic(y, y, x, factors) : traffic(y, x, factors)}))
    return;
  LORASHARD_RETURN_ON_CUDA(stream, scale_columns(stream, y, x, factors, accumulate));
  const ProfileSpan span("kernel", "scale_columns");
  const CpuKernels& cpu = cpu_kernels();
  assert(y.rows == x.rows && y.cols == x.cols && factors.cols == x.cols);
  assert(factors.rows == 1 && factors.dtype == DType::F32);
  const auto* by = static_cast<const float*>(factors.data);
  const int64_t worth_a_thread = 16384 / std::max<int64_t>(y.cols, 1) + 1;
  parallel_for(stream, y.rows, worth_a_thread, [&](int64_t begin, int64_t end) {
    Columns a;
    for (int64_t t = begin; t < end; ++t)
      for (int64_t first = 0; first < y.cols; first += kColumns) {
        const int64_t n = std::min(kColumns, y.cols - first);
        cpu.convert(a.data(), DType::F32, x.at(t, first), x.dtype, n);
        for (int64_t c = 0; c < n; ++c) a[size_t(c)] *= by[first + c];
        cpu.scale_add(y.at(t, first), y.dtype, a.data(), 1, accumulate ? 1 : 0, n);
      }
  });
}

}  // namespace lorashard
