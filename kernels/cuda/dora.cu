#include "kernels/dora.h"

#include <algorithm>

#include "kernels/cuda/kernels.h"
#include "kernels/cuda/map_rows.h"
#include "kernels/cuda/reduce.h"

namespace lorashard::cuda {
namespace {

constexpr int kRowThreads = 256;

// A block sums a row.
__global__ void __launch_bounds__(kRowThreads)
    row_squares_kernel(float* squares, Input<Any> w, int64_t cols) {
  SHARED_ARRAY(double, warps, kRowThreads / 32);
  double sum = 0;
#pragma unroll 1
  for (int64_t k = threadIdx.x; k < cols; k += kRowThreads) {
    const float x = w.at<1>(blockIdx.x, k)[0];
    sum += double(x) * double(x);
  }
  sum = block_sum<kRowThreads>(sum, warps);
  if (threadIdx.x == 0) squares[blockIdx.x] = float(sum);
}

constexpr int kSquareThreads = 128;

// A thread for each n; an optimizer step does this once.
__global__ void __launch_bounds__(kSquareThreads)
    dora_squares_kernel(float* squares, const float* base, Input<float> p, Input<float> b,
                        Input<float> gram, int rank, int64_t rows, float scaling) {
  const int64_t n = int64_t{blockIdx.x} * kSquareThreads + threadIdx.x;
  if (n >= rows) return;
  const float* row = b.data + n * b.ld;
  double sum = base[n];
#pragma unroll 1
  for (int i = 0; i < rank; ++i) {
    const float* g = gram.data + i * gram.ld;
    double inner = 0;
#pragma unroll 1
    for (int k = 0; k < rank; ++k) inner += double(g[k]) * double(row[k]);
    inner = 2 * double(p.data[i * p.ld + n]) + double(scaling) * inner;
    sum += double(scaling) * double(row[i]) * inner;
  }
  squares[n] = float(sum);
}

struct Scales {
  static constexpr int kColumns = 1;
  float *scale, *excess, *inverse_norm;
  const float *squares, *magnitude;
  template <int V>
  __device__ void run(int64_t, int64_t n) const {
    inverse_norm[n] = 1 / sqrtf(squares[n]);
    scale[n] = magnitude[n] * inverse_norm[n];
    excess[n] = scale[n] - 1;
  }
};

float* floats(const Matrix& m) { return static_cast<float*>(m.data); }
const float* floats(const ConstMatrix& m) { return static_cast<const float*>(m.data); }

}  // namespace

void row_squares(Stream& stream, Matrix squares, ConstMatrix w) {
  if (w.rows == 0) return;
  LORASHARD_CUDA_CHECK(launch(row_squares_kernel, dim3(unsigned(w.rows)), dim3(kRowThreads), 0,
                              stream_of(stream), floats(squares), Input<Any>(w), w.cols));
}

void dora_squares(Stream& stream, Matrix squares, ConstMatrix base, ConstMatrix p, ConstMatrix b,
                  ConstMatrix gram, float scaling) {
  if (b.rows == 0) return;
  const auto blocks = unsigned((b.rows + kSquareThreads - 1) / kSquareThreads);
  LORASHARD_CUDA_CHECK(launch(dora_squares_kernel, dim3(blocks), dim3(kSquareThreads), 0,
                              stream_of(stream), floats(squares), floats(base), Input<float>(p),
                              Input<float>(b), Input<float>(gram), int(b.cols), b.rows, scaling));
}

void dora_scales(Stream& stream, Matrix scale, Matrix excess, Matrix inverse_norm,
                 ConstMatrix squares, ConstMatrix magnitude) {
  map(stream,
      Scales{floats(scale), floats(excess), floats(inverse_norm), floats(squares),
             floats(magnitude)},
      1, scale.cols, true);
}

}  // namespace lorashard::cuda
