// What the norms share on the CPU.
#pragma once

#include <algorithm>
#include <cassert>

#include "kernels/cpu/table.h"
#include "kernels/parallel_for.h"
#include "kernels/residual.h"

namespace lorashard {

// One row of parameters in fp32, `offset` added; zeros if there are none. Lives in the stream's
// scratch `slot`.
inline float* widened_row(Stream& stream, ScratchSlot slot, ConstMatrix row, int64_t cols,
                          float offset) {
  auto* values = static_cast<float*>(stream.scratch(slot, size_t(cols) * sizeof(float)));
  if (!row) {
    std::fill_n(values, cols, 0.0f);
    return values;
  }
  cpu_kernels().convert(values, DType::F32, row.data, row.dtype, cols);
  for (int64_t i = 0; i < cols && offset != 0; ++i) values[i] += offset;
  return values;
}

// Calls body(t) for every row of x, shared out over the threads.
template <class Body>
void each_row(Stream& stream, ConstMatrix x, const Body& body) {
  parallel_for(stream, x.rows, 8192 / std::max<int64_t>(x.cols, 1) + 1,
               [&](int64_t begin, int64_t end) {
                 for (int64_t t = begin; t < end; ++t) body(t);
               });
}

// Forms each row of add.sum, if there is one, and calls body(t, in) at once: `in` is the sum, or x.
// The row is still in the L1 cache when the norm reads it.
template <class Body>
void each_row_after_add(Stream& stream, ConstMatrix x, const ResidualAdd& add, const Body& body) {
  const CpuKernels& cpu = cpu_kernels();
  const float* bias =
      add.bias ? widened_row(stream, ScratchSlot::ResidualBias, add.bias, x.cols, 0) : nullptr;
  const ConstMatrix in = add ? ConstMatrix(add.sum) : x;
  assert(!add || (add.sum.rows == x.rows && add.sum.cols == x.cols && add.delta.cols == x.cols));
  each_row(stream, x, [&](int64_t t) {
    if (add)
      cpu.add(add.sum.at(t, 0), add.sum.dtype, x.at(t, 0), x.dtype, add.delta.at(t, 0),
              add.delta.dtype, bias, x.cols);
    body(t, in);
  });
}

}  // namespace lorashard
