#include "kernels/rms_norm.h"

#include <cassert>

#include "kernels/cuda/check.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/norm_teams.h"

namespace lorashard::cuda {
namespace {

template <class T>
struct SumOfSquares {
  Input<T> x;
  Residual<T> residual;
  int64_t row, first;
  float sum = 0;
  template <int V>
  __device__ void run(int64_t c) {
    const Floats<V> v = residual.template add_to<V>(x, row, first + c);
#pragma unroll
    for (int i = 0; i < V; ++i) sum += v[i] * v[i];
  }
};

template <class T>
struct Normalize {
  Output<T> y;
  Input<T> x;
  Input<Any> gain;
  float gain_offset;
  int64_t row, first;
  float r;
  template <int V>
  __device__ void run(int64_t c) {
    Floats<V> v = x.template at<V>(row, first + c);
    const Floats<V> g = gain.at<V>(0, c);
#pragma unroll
    for (int i = 0; i < V; ++i) v[i] = v[i] * r * (g[i] + gain_offset);
    y.template set<V>(row, first + c, v);
  }
};

template <class T, bool WholeBlock>
__global__ void __launch_bounds__(kNormThreads)
    rms_norm_forward_kernel(Teams teams, Output<T> y, float* rstd, int64_t ld_rstd, Input<T> x,
                            Input<Any> gain, float eps, float gain_offset, Residual<T> residual) {
  constexpr int kColumns = kVector<T>;
  const Place p = place_of<WholeBlock>(teams);
  const int64_t first = p.group * teams.d;
  SumOfSquares<T> squares{x, residual, p.row, first};
  each_column<kColumns>(teams, p, squares);
  const float sum = sum_over_team<WholeBlock>(squares.sum, teams);
  const float r = 1.0f / sqrtf(sum / float(teams.d) + eps);
  if (rstd && p.exists && p.lane == 0) rstd[p.row * ld_rstd + p.group] = r;
  Normalize<T> normalize{y, residual.normed(x), gain, gain_offset, p.row, first, r};
  each_column<kColumns>(teams, p, normalize);
}

template <class T>
struct WeightedSum {
  Input<T> dy, x;
  Input<Any> gain;
  float gain_offset;
  int64_t row, first;
  float sum = 0;
  template <int V>
  __device__ void run(int64_t c) {
    const Floats<V> v = x.template at<V>(row, first + c), d = dy.template at<V>(row, first + c),
                    g = gain.at<V>(0, c);
#pragma unroll
    for (int i = 0; i < V; ++i) sum += v[i] * (g[i] + gain_offset) * d[i];
  }
};

// dx = r gain dy - c x.
template <class T>
struct Gradient {
  Output<T> dx;
  Input<T> dy, x;
  Input<Any> gain;
  float gain_offset;
  int64_t row, first;
  float r, factor;
  bool accumulate;
  template <int V>
  __device__ void run(int64_t c) {
    Floats<V> v = x.template at<V>(row, first + c);
    const Floats<V> d = dy.template at<V>(row, first + c), g = gain.at<V>(0, c);
#pragma unroll
    for (int i = 0; i < V; ++i) v[i] = r * (g[i] + gain_offset) * d[i] - factor * v[i];
    set_or_add<V>(dx, row, first + c, v, accumulate);
  }
};

template <class T, bool WholeBlock>
__global__ void __launch_bounds__(kNormThreads)
    rms_norm_backward_kernel(Teams teams, Output<T> dx, Input<T> dy, Input<T> x, const float* rstd,
                             int64_t ld_rstd, Input<Any> gain, float gain_offset, bool accumulate) {
  constexpr int kColumns = kVector<T>;
  const Place p = place_of<WholeBlock>(teams);
  const int64_t first = p.group * teams.d;
  WeightedSum<T> weighted{dy, x, gain, gain_offset, p.row, first};
  each_column<kColumns>(teams, p, weighted);
  const float sum = sum_over_team<WholeBlock>(weighted.sum, teams);
  const float r = p.exists ? rstd[p.row * ld_rstd + p.group] : 0;
  const float factor = sum * r * r * r / float(teams.d);
  Gradient<T> gradient{dx, dy, x, gain, gain_offset, p.row, first, r, factor, accumulate};
  each_column<kColumns>(teams, p, gradient);
}

constexpr int kGainColumns = 32, kGainRows = 8;

// A block sums 32 columns of a group over all rows and groups, which its eight warps take in turn.
template <class T>
__global__ void __launch_bounds__(kGainColumns* kGainRows)
    gain_backward_kernel(float* d_gain, Input<T> dy, Input<T> x, const float* rstd, int64_t ld_rstd,
                         int64_t rows, int64_t groups, int64_t d) {
  SHARED_ARRAY(double, parts, kGainColumns* kGainRows);
  const int lane = int(threadIdx.x) % kGainColumns, warp = int(threadIdx.x) / kGainColumns;
  const int64_t col = int64_t{blockIdx.x} * kGainColumns + lane;
  double sum = 0;
  if (col < d) {
#pragma unroll 1
    for (int64_t t = warp; t < rows; t += kGainRows) {
#pragma unroll 1
      for (int64_t g = 0; g < groups; ++g) {
        const float a = dy.template at<1>(t, g * d + col)[0];
        const float b = x.template at<1>(t, g * d + col)[0] * rstd[t * ld_rstd + g];
        sum += double(a) * double(b);
      }
    }
  }
  parts[threadIdx.x] = sum;
  __syncthreads();
  if (warp != 0 || col >= d) return;
  for (int w = 1; w < kGainRows; ++w) sum += parts[w * kGainColumns + lane];
  d_gain[col] = float(double(d_gain[col]) + sum);
}

}  // namespace

void rms_norm_forward(Stream& stream, Matrix y, Matrix rstd, ConstMatrix x, ConstMatrix gain,
                      float eps, float gain_offset, const ResidualAdd& add) {
  if (x.rows == 0 || x.cols == 0) return;
  with_norm_type(y.dtype, x.dtype, add, [&]<class T>() {
    constexpr int kColumns = kVector<T>;
    const NormLaunch l = norm_launch(
        x, gain.cols, kColumns, vectors_fit(kColumns, {y, x, gain, add.sum, add.delta, add.bias}));
    with_bool(l.whole_block, [&]<bool WholeBlock>() {
      LORASHARD_CUDA_CHECK(launch(rms_norm_forward_kernel<T, WholeBlock>, dim3(l.blocks),
                                  dim3(kNormThreads), 0, stream_of(stream), l.teams, Output<T>(y),
                                  static_cast<float*>(rstd.data), rstd.ld, Input<T>(x),
                                  Input<Any>(gain), eps, gain_offset, Residual<T>(add)));
    });
  });
}

void rms_norm_backward(Stream& stream, Matrix dx, ConstMatrix dy, ConstMatrix x, ConstMatrix rstd,
                       ConstMatrix gain, float gain_offset, bool accumulate) {
  if (x.rows == 0 || x.cols == 0) return;
  with_common_type({dx.dtype, dy.dtype, x.dtype}, [&]<class T>() {
    constexpr int kColumns = kVector<T>;
    const NormLaunch l =
        norm_launch(x, gain.cols, kColumns, vectors_fit(kColumns, {dx, dy, x, gain}));
    with_bool(l.whole_block, [&]<bool WholeBlock>() {
      LORASHARD_CUDA_CHECK(launch(rms_norm_backward_kernel<T, WholeBlock>, dim3(l.blocks),
                                  dim3(kNormThreads), 0, stream_of(stream), l.teams, Output<T>(dx),
                                  Input<T>(dy), Input<T>(x), static_cast<const float*>(rstd.data),
                                  rstd.ld, Input<Any>(gain), gain_offset, accumulate));
    });
  });
}

void rms_norm_gain_backward(Stream& stream, Matrix d_gain, ConstMatrix dy, ConstMatrix x,
                            ConstMatrix rstd) {
  if (d_gain.cols == 0) return;
  const int64_t d = d_gain.cols;
  const auto blocks = unsigned((d + kGainColumns - 1) / kGainColumns);
  with_common_type({dy.dtype, x.dtype}, [&]<class T>() {
    LORASHARD_CUDA_CHECK(
        launch(gain_backward_kernel<T>, dim3(blocks), dim3(kGainColumns * kGainRows), 0,
               stream_of(stream), static_cast<float*>(d_gain.data), Input<T>(dy), Input<T>(x),
               static_cast<const float*>(rstd.data), rstd.ld, x.rows, x.cols / d, d));
  });
}

}  // namespace lorashard::cuda
