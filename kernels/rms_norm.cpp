#include "kernels/rms_norm.h"

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

}  // namespace lorashard
