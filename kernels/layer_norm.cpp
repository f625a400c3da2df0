#include "kernels/layer_norm.h"

#include <cassert>

#include "kernels/cuda/dispatch.h"
#include "kernels/norm_rows.h"
#include "kernels/profile.h"

namespace lorashard {

void layer_norm_forward(Stream& stream, Matrix y, Matrix mean_rstd, ConstMatrix x, ConstMatrix gain,
                        ConstMatrix bias, float eps, const ResidualAdd& add) {
  if (stream.record("layer_norm_forward",
                    {traffic(y, x) + (add ? traffic(add.sum, add.delta) : 0)}))
    return;
  LORASHARD_RETURN_ON_CUDA(stream,
                           layer_norm_forward(stream, y, mean_rstd, x, gain, bias, eps, add));
  const ProfileSpan span("kernel", "layer_norm_forward");
  const CpuKernels& cpu = cpu_kernels();
  assert(gain.cols == x.cols && y.rows == x.rows && y.cols == x.cols);
  const float* g = widened_row(stream, ScratchSlot::NormGain, gain, x.cols, 0);
  const float* b = widened_row(stream, ScratchSlot::NormBias, bias, x.cols, 0);
  each_row_after_add(stream, x, add, [&](int64_t t, ConstMatrix in) {
    cpu.layer_norm_forward(y.at(t, 0), y.dtype,
                           mean_rstd ? reinterpret_cast<float*>(mean_rstd.at(t, 0)) : nullptr,
                           in.at(t, 0), in.dtype, g, b, x.cols, eps);
  });
}

void layer_norm_backward(Stream& stream, Matrix dx, ConstMatrix dy, ConstMatrix x,
                         ConstMatrix mean_rstd, ConstMatrix gain, bool accumulate) {
  if (stream.record("layer_norm_backward", {traffic(dx, dy, x) + (accumulate ? traffic(dx) : 0)}))
    return;
  LORASHARD_RETURN_ON_CUDA(stream,
                           layer_norm_backward(stream, dx, dy, x, mean_rstd, gain, accumulate));
  const ProfileSpan span("kernel", "layer_norm_backward");
  const CpuKernels& cpu = cpu_kernels();
  assert(gain.cols == x.cols && dx.rows == x.rows && dy.rows == x.rows);
  const float* g = widened_row(stream, ScratchSlot::NormGain, gain, x.cols, 0);
  each_row(stream, x, [&](int64_t t) {
    cpu.layer_norm_backward(dx.at(t, 0), dx.dtype, dy.at(t, 0), dy.dtype, x.at(t, 0), x.dtype,
                            reinterpret_cast<const float*>(mean_rstd.at(t, 0)), g, x.cols,
                            accumulate);
  });
}

}  // namespace lorashard
