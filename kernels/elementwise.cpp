#include "kernels/elementwise.h"

#include <cassert>

#include "kernels/cpu/table.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/parallel_for.h"
#include "kernels/profile.h"

namespace lorashard {
namespace {

// Below this many elements a part, waking a thread costs more than it saves.
int64_t rows_worth_a_thread(int64_t cols) { return 16384 / std::max<int64_t>(cols, 1) + 1; }

}  // namespace

void convert(Stream& stream, Matrix y, ConstMatrix x) {
  if (stream.record("convert", {traffic(y, x)})) return;
  LORASHARD_RETURN_ON_CUDA(stream, convert(stream, y, x));
  const ProfileSpan span("kernel", "convert");
  const CpuKernels& cpu = cpu_kernels();
  assert(y.rows == x.rows && y.cols == x.cols);
  parallel_for(stream, y.rows, rows_worth_a_thread(y.cols), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      cpu.convert(y.at(t, 0), y.dtype, x.at(t, 0), x.dtype, y.cols);
  });
}

void fill_zero(Stream& stream, Matrix y) {
  if (stream.record("fill_zero", {traffic(y)})) return;
  LORASHARD_RETURN_ON_CUDA(stream, fill_zero(stream, y));
  const ProfileSpan span("kernel", "fill_zero");
  parallel_for(stream, y.rows, rows_worth_a_thread(y.cols), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) std::fill_n(y.at(t, 0), y.cols * size_of(y.dtype), 0);
  });
}

void add(Stream& stream, Matrix y, ConstMatrix a, ConstMatrix b) {
  if (stream.record("add", {traffic(y, a, b)})) return;
  LORASHARD_RETURN_ON_CUDA(stream, add(stream, y, a, b));
  const ProfileSpan span("kernel", "add");
  const CpuKernels& cpu = cpu_kernels();
  parallel_for(stream, y.rows, rows_worth_a_thread(y.cols), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      cpu.add(y.at(t, 0), y.dtype, a.at(t, 0), a.dtype, b.at(t, 0), b.dtype, nullptr, y.cols);
  });
}

void add_bias(Stream& stream, Matrix y, ConstMatrix bias) {
  if (stream.record("add_bias", {traffic(y, y, bias)})) return;
  LORASHARD_RETURN_ON_CUDA(stream, add_bias(stream, y, bias));
  const ProfileSpan span("kernel", "add_bias");
  const CpuKernels& cpu = cpu_kernels();
  parallel_for(stream, y.rows, rows_worth_a_thread(y.cols), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      cpu.add(y.at(t, 0), y.dtype, y.at(t, 0), y.dtype, bias.data, bias.dtype, nullptr, y.cols);
  });
}

void scale(Stream& stream, Matrix y, float factor) {
  if (stream.record("scale", {traffic(y, y)})) return;
  LORASHARD_RETURN_ON_CUDA(stream, scale(stream, y, factor));
  const ProfileSpan span("kernel", "scale");
  const CpuKernels& cpu = cpu_kernels();
  parallel_for(stream, y.rows, rows_worth_a_thread(y.cols), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      cpu.scale(y.at(t, 0), y.dtype, y.at(t, 0), y.dtype, factor, y.cols);
  });
}

}  // namespace lorashard
