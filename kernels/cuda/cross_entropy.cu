#include "kernels/cross_entropy.h"

#include "kernels/cuda/kernels.h"
#include "kernels/cuda/map_rows.h"

namespace lorashard::cuda {
namespace {

// The largest value so far and the sum of exp(value - top) over those values.
struct MaxSum {
  float top, sum;
};

__device__ __forceinline__ MaxSum join(MaxSum a, MaxSum b) {
  const float top = fmaxf(a.top, b.top);
  // Equal tops make 1 and not exp(-inf + inf): a part may have seen nothing or only -inf.
  return {top, a.sum * (a.top == top ? 1.0f : expf(a.top - top)) +
                   b.sum * (b.top == top ? 1.0f : expf(b.top - top))};
}

template <int V>
__device__ __forceinline__ void take(MaxSum& m, const Floats<V>& x) {
  float top = m.top;
#pragma unroll
  for (int i = 0; i < V; ++i) top = fmaxf(top, x[i]);  // skips NaN, which reaches the sum
  if (top > m.top) {
    m.sum *= expf(m.top - top);
    m.top = top;
  }
  const float from = m.top == -INFINITY ? 0.0f : m.top;  // exp(-inf) = 0 and not exp(-inf + inf)
#pragma unroll
  for (int i = 0; i < V; ++i) m.sum += expf(x[i] - from);
}

// A block a row: rows are long (a rank's part of the vocabulary) and few, so that the block is as
// large as the row fills, up to the largest there is. Logits are read once.
template <class T>
__global__ void __launch_bounds__(1024)
    cross_entropy_stats_kernel(float* stats, int64_t ld_stats, Input<T> logits, int64_t cols,
                               int64_t vectors, const int32_t* labels, int64_t first) {
  SHARED_ARRAY(float, tops, 32);
  SHARED_ARRAY(float, sums, 32);
  const int64_t row = blockIdx.x;
  const int t = int(threadIdx.x), threads = int(blockDim.x);
  MaxSum m{-INFINITY, 0};
#pragma unroll 2
  for (int64_t u = t; u < vectors; u += threads)
    take(m, logits.template at<kVector<T>>(row, u * kVector<T>));
#pragma unroll 1
  for (int64_t c = vectors * kVector<T> + t; c < cols; c += threads)
    take(m, logits.template at<1>(row, c));
  for (int offset = 16; offset > 0; offset /= 2)
    m = join(m, {__shfl_xor_sync(0xffffffffu, m.top, offset),
                 __shfl_xor_sync(0xffffffffu, m.sum, offset)});
  if (t % 32 == 0) {
    tops[t / 32] = m.top;
    sums[t / 32] = m.sum;
  }
  __syncthreads();
  if (t > 0) return;
  for (int i = 1; i < threads / 32; ++i) m = join(m, {tops[i], sums[i]});
  float* out = stats + row * ld_stats;
  const int64_t c = labels[row] - first;
  out[0] = m.top;
  out[1] = m.sum;
  out[2] = c >= 0 && c < cols ? logits.template at<1>(row, c)[0] : 0.0f;
}

template <class T>
struct Gradient {
  static constexpr int kColumns = kVector<T>;
  Output<T> logits;
  const float* lse;
  const int32_t* labels;
  int64_t first;
  float factor;
  const float* row_factors;
  template <int V>
  __device__ void run(int64_t row, int64_t col) const {
    Floats<V> x = logits.template at<V>(row, col);
    const float from = lse[row], f = row_factors ? factor * row_factors[row] : factor;
    const int64_t label = labels[row] - first - col;
#pragma unroll
    for (int i = 0; i < V; ++i) x[i] = f * (expf(x[i] - from) - (label == i ? 1.0f : 0.0f));
    logits.template set<V>(row, col, x);
  }
};

constexpr int kCombineThreads = 256;

// One block: rows are hundreds, and their losses are added in their order.
__global__ void __launch_bounds__(kCombineThreads)
    cross_entropy_combine_kernel(float* lse, double* loss, const float* stats, int64_t rows,
                                 int ranks, double* row_losses) {
  SHARED_ARRAY(double, losses, kCombineThreads);
  const int t = int(threadIdx.x);
  double total = 0;
  for (int64_t begin = 0; begin < rows; begin += kCombineThreads) {
    const int64_t r = begin + t;
    if (r < rows) {
      float top = stats[r * 3];
      for (int k = 1; k < ranks; ++k) top = fmaxf(top, stats[(k * rows + r) * 3]);
      double sum = 0, label = 0;
      for (int k = 0; k < ranks; ++k) {
        const float* entry = stats + (k * rows + r) * 3;
        sum += double(entry[1]) * exp(double(entry[0]) - top);
        label += entry[2];
      }
      const double row_lse = top + log(sum);
      lse[r] = float(row_lse);
      losses[t] = row_lse - label;
      if (row_losses) row_losses[r] = losses[t];
    }
    __syncthreads();
    const int count = int(rows - begin < kCombineThreads ? rows - begin : kCombineThreads);
    if (t == 0)
      for (int i = 0; i < count; ++i) total += losses[i];
    __syncthreads();
  }
  if (t == 0 && loss) *loss += total;
}

}  // namespace

void cross_entropy_stats(Stream& stream, Matrix stats, ConstMatrix logits, const int32_t* labels,
                         int64_t first) {
  if (logits.rows == 0) return;
  with_common_type({logits.dtype}, [&]<class T>() {
    const int64_t vectors =
        vectors_fit(kVector<T>, {logits}) ? logits.cols / kVector<T> : int64_t{0};
    const int64_t units = std::max(vectors, logits.cols - vectors * kVector<T>);
    const int64_t threads = std::min<int64_t>(1024, (units + 31) / 32 * 32);
    LORASHARD_CUDA_CHECK(launch(cross_entropy_stats_kernel<T>, dim3(unsigned(logits.rows)),
                                dim3(unsigned(std::max<int64_t>(threads, 32))), 0,
                                stream_of(stream), static_cast<float*>(stats.data), stats.ld,
                                Input<T>(logits), logits.cols, vectors, labels, first));
  });
}

void cross_entropy_gradient(Stream& stream, Matrix logits, const float* lse, const int32_t* labels,
                            int64_t first, float factor, const float* row_factors) {
  with_common_type({logits.dtype}, [&]<class T>() {
    using Op = Gradient<T>;
    map(stream, Op{Output<T>(logits), lse, labels, first, factor, row_factors}, logits.rows,
        logits.cols, vectors_fit(Op::kColumns, {logits}));
  });
}

void cross_entropy_combine(Stream& stream, float* lse, double* loss, ConstMatrix stats, int ranks,
                           double* row_losses) {
  if (stats.rows == 0) return;
  LORASHARD_CUDA_CHECK(launch(cross_entropy_combine_kernel, dim3(1), dim3(kCombineThreads), 0,
                              stream_of(stream), lse, loss, static_cast<const float*>(stats.data),
                              stats.rows / ranks, ranks, row_losses));
}

}  // namespace lorashard::cuda
