#include "kernels/rms_norm.h"

#include <algorithm>
#include <array>
#include <cassert>

#include "kernels/cuda/dispatch.h"
#include "kernels/norm_rows.h"
#include "kernels/profile.h"

namespace lorashard {

void rms_norm_forward(Stream& stream, Matrix y, Matrix rstd, ConstMatrix x, ConstMatrix gain,
                      float eps, float gain_offset, const ResidualAdd& add) {
  if (stream.record("rms_norm_forward", {traffic(y, x) + (add ? traffic(add.sum, add.delta) : 0)}))
    return;
  LORASHARD_RETURN_ON_CUDA(stream,
                           rms_norm_forward(stream, y, rstd, x, gain, eps, gain_offset, add));
  const ProfileSpan span("kernel", "rms_norm_forward");
  const CpuKernels& cpu = cpu_kernels();
  const int64_t d = gain.cols, groups = d ? x.cols / d : 0;
  assert(groups * d == x.cols && y.rows == x.rows && y.cols == x.cols && (!add || groups == 1));
  const float* g = widened_row(stream, ScratchSlot::NormGain, gain, d, gain_offset);
  each_row_after_add(stream, x, add, [&](int64_t t, ConstMatrix in) {
    cpu.rms_norm_forward(y.at(t, 0), y.dtype,
                         rstd ? reinterpret_cast<float*>(rstd.at(t, 0)) : nullptr, in.at(t, 0),
                         in.dtype, g, d, groups, eps);
  });
}

void rms_norm_backward(Stream& stream, Matrix dx, ConstMatrix dy, ConstMatrix x, ConstMatrix rstd,
                       ConstMatrix gain, float gain_offset, bool accumulate) {
  if (stream.record("rms_norm_backward", {traffic(dx, dy, x) + (accumulate ? traffic(dx) : 0)}))
    return;
  LORASHARD_RETURN_ON_CUDA(
      stream, rms_norm_backward(stream, dx, dy, x, rstd, gain, gain_offset, accumulate));
  const ProfileSpan span("kernel", "rms_norm_backward");
  const CpuKernels& cpu = cpu_kernels();
  const int64_t d = gain.cols, groups = d ? x.cols / d : 0;
  assert(groups * d == x.cols && dx.rows == x.rows && dy.rows == x.rows);
  const float* g = widened_row(stream, ScratchSlot::NormGain, gain, d, gain_offset);
  each_row(stream, x, [&](int64_t t) {
    cpu.rms_norm_backward(dx.at(t, 0), dx.dtype, dy.at(t, 0), dy.dtype, x.at(t, 0), x.dtype,
                          reinterpret_cast<const float*>(rstd.at(t, 0)), g, d, groups, accumulate);
  });
}

void rms_norm_gain_backward(Stream& stream, Matrix d_gain, ConstMatrix dy, ConstMatrix x,
                            ConstMatrix rstd) {
  if (stream.record("rms_norm_gain_backward", {traffic(d_gain, d_gain, dy, x)})) return;
  LORASHARD_RETURN_ON_CUDA(stream, rms_norm_gain_backward(stream, d_gain, dy, x, rstd));
  const ProfileSpan span("kernel", "rms_norm_gain_backward");
  const CpuKernels& cpu = cpu_kernels();
  const int64_t d = d_gain.cols, groups = d ? x.cols / d : 0;
  assert(groups * d == x.cols && dy.rows == x.rows && dy.cols == x.cols);
  constexpr int64_t kColumns = 256;  // at a time: floats that stay in the first cache
  // Threads share out the columns; each goes over all rows.
  parallel_for(stream, (d + kColumns - 1) / kColumns, 1, [&](int64_t begin, int64_t end) {
    std::array<float, kColumns> a, b;
    std::array<double, kColumns> sum;
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = part * kColumns, n = std::min(kColumns, d - first);
      sum.fill(0);
      for (int64_t t = 0; t < x.rows; ++t) {
        for (int64_t g = 0; g < groups; ++g) {
          cpu.convert(a.data(), DType::F32, dy.at(t, g * d + first), dy.dtype, n);
          cpu.convert(b.data(), DType::F32, x.at(t, g * d + first), x.dtype, n);
          const float r = *reinterpret_cast<const float*>(rstd.at(t, g));
          for (int64_t c = 0; c < n; ++c)
            sum[size_t(c)] += double(a[size_t(c)]) * double(b[size_t(c)] * r);
        }
      }
      auto* to = reinterpret_cast<float*>(d_gain.at(0, first));
      for (int64_t c = 0; c < n; ++c) to[c] = float(double(to[c]) + sum[size_t(c)]);
    }
  });
}

}  // namespace lorashard
