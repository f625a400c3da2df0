#include "kernels/adamw.h"

#include <vector>

#include "kernels/cpu/table.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/parallel_for.h"
#include "kernels/profile.h"

namespace lorashard {
namespace {

constexpr int64_t kChunk = 1 << 14;  // elements; a unit of work and of summation

}  // namespace

// The loop: kernels/cpu/rows.h.
void adamw(Stream& stream, float* p, float* m, float* v, const float* g, int64_t n,
           const AdamWStep& step) {
  if (stream.record("adamw", {7 * double(n) * sizeof(float)})) return;
  LORASHARD_RETURN_ON_CUDA(stream, adamw(stream, p, m, v, g, n, step));
  const ProfileSpan span("kernel", "adamw");
  const CpuKernels& cpu = cpu_kernels();
  parallel_for(stream, (n + kChunk - 1) / kChunk, 1, [&](int64_t begin, int64_t end) {
    const int64_t i = begin * kChunk, count = std::min(n, end * kChunk) - i;
    cpu.adamw(p + i, m + i, v + i, g + i, count, step);
  });
}

void sum_of_squares(Stream& stream, double* sum, const float* x, int64_t n) {
  if (stream.record("sum_of_squares", {double(n) * sizeof(float)})) return;
  LORASHARD_RETURN_ON_CUDA_WITH_SCRATCH(stream, sum_of_squares(stream, sum, x, n));
  const ProfileSpan span("kernel", "sum_of_squares");
  const CpuKernels& cpu = cpu_kernels();
  const int64_t chunks = (n + kChunk - 1) / kChunk;
  std::vector<double> sums(static_cast<size_t>(chunks));
  parallel_for(stream, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c)
      sums[size_t(c)] = cpu.sum_of_squares(x + c * kChunk, std::min(kChunk, n - c * kChunk));
  });
  *sum = 0;
  for (double s : sums) *sum += s;
}

void split_double([[maybe_unused]] Stream& stream, float* high, float* low, const double* x) {
  if (stream.record("split_double", {2 * sizeof(double)})) return;
  LORASHARD_RETURN_ON_CUDA(stream, split_double(stream, high, low, x));
  const ProfileSpan span("kernel", "split_double");
  *high = float(*x);
  *low = float(*x - double(*high));
}

}  // namespace lorashard
