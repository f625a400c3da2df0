#include "kernels/rms_norm.h"

#include <cassert>

#include "kernels/cpu/table.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/parallel_for.h"
#include "kernels/profile.h"

namespace lorashard {
namespace {

// gain + offset in fp32.
const float* full_gain(Stream& stream, ConstMatrix gain, float offset) {
  const CpuKernels& cpu = cpu_kernels();
  auto* g = static_cast<float*>(stream.scratch(0, size_t(gain.cols) * sizeof(float)));
  cpu.convert(g, DType::F32, gain.data, gain.dtype, gain.cols);
  for (int64_t i = 0; i < gain.cols && offset != 0; ++i) g[i] += offset;
  return g;
}

}  // namespace

void rms_norm_forward(Stream& stream, Matrix y, Matrix rstd, ConstMatrix x, ConstMatrix gain,
                      float eps, float gain_offset) {
  LORASHARD_ON_CUDA(stream, rms_norm_forward(stream, y, rstd, x, gain, eps, gain_offset));
  const ProfileSpan span("kernel", "rms_norm_forward");
  const CpuKernels& cpu = cpu_kernels();
  const int64_t d = gain.cols, groups = d ? x.cols / d : 0;
  assert(groups * d == x.cols && y.rows == x.rows && y.cols == x.cols);
  const float* g = full_gain(stream, gain, gain_offset);
  parallel_for(stream, x.rows, 8192 / std::max<int64_t>(x.cols, 1) + 1,
               [&](int64_t begin, int64_t end) {
                 for (int64_t t = begin; t < end; ++t)
                   cpu.rms_norm_forward(y.at(t, 0), y.dtype,
                                        rstd ? reinterpret_cast<float*>(rstd.at(t, 0)) : nullptr,
                                        x.at(t, 0), x.dtype, g, d, groups, eps);
               });
}

void rms_norm_backward(Stream& stream, Matrix dx, ConstMatrix dy, ConstMatrix x, ConstMatrix rstd,
                       ConstMatrix gain, float gain_offset, bool accumulate) {
  LORASHARD_ON_CUDA(stream,
                    rms_norm_backward(stream, dx, dy, x, rstd, gain, gain_offset, accumulate));
  const ProfileSpan span("kernel", "rms_norm_backward");
  const CpuKernels& cpu = cpu_kernels();
  const int64_t d = gain.cols, groups = d ? x.cols / d : 0;
  assert(groups * d == x.cols && dx.rows == x.rows && dy.rows == x.rows);
  const float* g = full_gain(stream, gain, gain_offset);
  parallel_for(stream, x.rows, 8192 / std::max<int64_t>(x.cols, 1) + 1,
               [&](int64_t begin, int64_t end) {
                 for (int64_t t = begin; t < end; ++t)
                   cpu.rms_norm_backward(dx.at(t, 0), dx.dtype, dy.at(t, 0), dy.dtype, x.at(t, 0),
                                         x.dtype, reinterpret_cast<const float*>(rstd.at(t, 0)), g,
                                         d, groups, accumulate);
               });
}

}  // namespace lorashard
