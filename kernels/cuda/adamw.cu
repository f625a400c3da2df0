#include "kernels/adamw.h"

#include <cmath>

#include "kernels/cuda/kernels.h"
#include "kernels/cuda/map_rows.h"
#include "kernels/cuda/reduce.h"

namespace lorashard::cuda {
namespace {

struct Update {
  static constexpr int kColumns = 4;
  float *p, *m, *v;
  const float* g;
  float gradient_scale, one_minus_b1, beta2, one_minus_b2;
  float decay, rate, inverse_root2, epsilon;
  template <int V>
  __device__ void run(int64_t, int64_t i) const {
    Floats<V> p0 = load<V>(p + i), m0 = load<V>(m + i), v0 = load<V>(v + i);
    const Floats<V> gradient = load<V>(g + i);
#pragma unroll
    for (int k = 0; k < V; ++k) {
      const float grad = gradient[k] * gradient_scale;
      m0[k] += one_minus_b1 * (grad - m0[k]);
      v0[k] = beta2 * v0[k] + one_minus_b2 * (grad * grad);
      p0[k] = p0[k] * decay - rate * m0[k] / (sqrtf(v0[k]) * inverse_root2 + epsilon);
    }
    store<V>(p + i, p0);
    store<V>(m + i, m0);
    store<V>(v + i, v0);
  }
};

constexpr int kSumThreads = 256;
constexpr int64_t kChunk = 1 << 14;  // elements a block sums

// Block b sums chunk b. Threads take four neighbours at a time whether or not one load can bring
// them, so that the order depends on n alone.
__global__ void __launch_bounds__(kSumThreads)
    sum_of_squares_kernel(double* parts, const float* x, int64_t n, bool aligned) {
  SHARED_ARRAY(double, warps, kSumThreads / 32);
  const int64_t begin = blockIdx.x * kChunk, end = begin + kChunk < n ? begin + kChunk : n;
  double sum = 0;
#pragma unroll 4
  for (int64_t i = begin + 4 * int(threadIdx.x); i < end; i += 4 * kSumThreads) {
    if (aligned && i + 4 <= end) {
      const Floats<4> v = load<4>(x + i);
#pragma unroll
      for (int k = 0; k < 4; ++k) sum += double(v[k]) * double(v[k]);
    } else {
      const int64_t stop = i + 4 < end ? i + 4 : end;
      for (int64_t j = i; j < stop; ++j) sum += double(x[j]) * double(x[j]);
    }
  }
  sum = block_sum<kSumThreads>(sum, warps);
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kSumThreads)
    sum_parts_kernel(double* sum, const double* parts, int64_t n) {
  SHARED_ARRAY(double, warps, kSumThreads / 32);
  double s = 0;
  for (int64_t i = threadIdx.x; i < n; i += kSumThreads) s += parts[i];
  s = block_sum<kSumThreads>(s, warps);
  if (threadIdx.x == 0) *sum = s;
}

__global__ void __launch_bounds__(1) split_double_kernel(float* high, float* low, const double* x) {
  *high = float(*x);
  *low = float(*x - double(*high));
}

}  // namespace

void adamw(Stream& stream, float* p, float* m, float* v, const float* g, int64_t n,
           const AdamWStep& step) {
  // Corrections in double, as PyTorch forms them.
  const double c1 = 1 - std::pow(double(step.beta1), double(step.step));
  const double c2 = 1 - std::pow(double(step.beta2), double(step.step));
  const Update op{p,
                  m,
                  v,
                  g,
                  step.gradient_scale,
                  float(1 - double(step.beta1)),
                  step.beta2,
                  float(1 - double(step.beta2)),
                  float(1 - double(step.learning_rate) * double(step.weight_decay)),
                  float(double(step.learning_rate) / c1),
                  float(1 / std::sqrt(c2)),
                  step.epsilon};
  const auto row = [n](const void* x) { return const_matrix(x, 1, n, DType::F32); };
  map(stream, op, 1, n, vectors_fit(Update::kColumns, {row(p), row(m), row(v), row(g)}));
}

void sum_of_squares(Stream& stream, double* sum, const float* x, int64_t n) {
  const int64_t chunks = (n + kChunk - 1) / kChunk;
  auto* parts =
      static_cast<double*>(stream.scratch(ScratchSlot::Reduction, size_t(chunks) * sizeof(double)));
  if (stream.reserving()) return;
  const bool aligned = vectors_fit(4, {const_matrix(x, 1, n, DType::F32)});
  if (chunks > 0)
    LORASHARD_CUDA_CHECK(launch(sum_of_squares_kernel, dim3(unsigned(chunks)), dim3(kSumThreads), 0,
                                stream_of(stream), parts, x, n, aligned));
  LORASHARD_CUDA_CHECK(launch(sum_parts_kernel, dim3(1), dim3(kSumThreads), 0, stream_of(stream),
                              sum, parts, chunks));
}

void split_double(Stream& stream, float* high, float* low, const double* x) {
  LORASHARD_CUDA_CHECK(
      launch(split_double_kernel, dim3(1), dim3(1), 0, stream_of(stream), high, low, x));
}

}  // namespace lorashard::cuda
