#include "kernels/activation.h"

#include <cassert>

#include "kernels/cpu/table.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/parallel_for.h"
#include "kernels/profile.h"

namespace lorashard {

void gated_activation_forward(Stream& stream, Matrix y, ConstMatrix gate, ConstMatrix up,
                              Activation f) {
  if (stream.record("gated_activation_forward", {traffic(y, gate, up)})) return;
  LORASHARD_RETURN_ON_CUDA(stream, gated_activation_forward(stream, y, gate, up, f));
  const ProfileSpan span("kernel", "gated_activation_forward");
  const CpuKernels& cpu = cpu_kernels();
  assert(y.dtype == gate.dtype && (!up || up.dtype == gate.dtype));
  parallel_for(stream, y.rows, 4096 / std::max<int64_t>(y.cols, 1) + 1,
               [&](int64_t begin, int64_t end) {
                 for (int64_t t = begin; t < end; ++t)
                   cpu.activation_forward(y.at(t, 0), gate.at(t, 0), up ? up.at(t, 0) : nullptr,
                                          y.dtype, y.cols, f);
               });
}

void gated_activation_backward(Stream& stream, Matrix d_gate, Matrix d_up, ConstMatrix dy,
                               ConstMatrix gate, ConstMatrix up, Activation f) {
  if (stream.record("gated_activation_backward", {traffic(d_gate, d_up, dy, gate, up)})) return;
  LORASHARD_RETURN_ON_CUDA(stream,
                           gated_activation_backward(stream, d_gate, d_up, dy, gate, up, f));
  const ProfileSpan span("kernel", "gated_activation_backward");
  const CpuKernels& cpu = cpu_kernels();
  assert(d_gate.dtype == gate.dtype && dy.dtype == gate.dtype && (!up || up.dtype == gate.dtype));
  parallel_for(stream, dy.rows, 4096 / std::max<int64_t>(dy.cols, 1) + 1,
               [&](int64_t begin, int64_t end) {
                 for (int64_t t = begin; t < end; ++t)
                   cpu.activation_backward(d_gate.at(t, 0), d_up ? d_up.at(t, 0) : nullptr,
                                           dy.at(t, 0), gate.at(t, 0), up ? up.at(t, 0) : nullptr,
                                           gate.dtype, dy.cols, f);
               });
}

}  // namespace lorashard
