#include "kernels/layer_norm.h"

#include <cassert>

#include "kernels/cuda/check.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/norm_teams.h"

namespace lorashard::cuda {
namespace {

template <class T>
struct Sum {
  Input<T> x;
  Residual<T> residual;
  int64_t row;
  float sum = 0;
  template <int V>
  __device__ void run(int64_t c) {
    const Floats<V> v = residual.template add_to<V>(x, row, c);
#pragma unroll
    for (int i = 0; i < V; ++i) sum += v[i];
  }
};

// Formed on its own, after the mean: the difference of two sums would lose what a small spread
// about a large mean has.
template <class T>
struct SumOfSquaresAbout {
  Input<T> x;
  int64_t row;
  float mean;
  float sum = 0;
  template <int V>
  __device__ void run(int64_t c) {
    const Floats<V> v = x.template at<V>(row, c);
#pragma unroll
    for (int i = 0; i < V; ++i) sum += (v[i] - mean) * (v[i] - mean);
  }
};

template <class T>
struct Normalize {
  Output<T> y;
  Input<T> x;
  Input<Any> gain, bias;
  int64_t row;
  float mean, r;
  template <int V>
  __device__ void run(int64_t c) {
    Floats<V> v = x.template at<V>(row, c);
    const Floats<V> g = gain.at<V>(0, c);
#pragma unroll
    for (int i = 0; i < V; ++i) v[i] = (v[i] - mean) * r * g[i];
    if (bias.exists()) {
      const Floats<V> b = bias.at<V>(0, c);
#pragma unroll
      for (int i = 0; i < V; ++i) v[i] += b[i];
    }
    y.template set<V>(row, c, v);
  }
};

template <class T, bool WholeBlock>
__global__ void __launch_bounds__(kNormThreads)
    layer_norm_forward_kernel(Teams teams, Output<T> y, float* mean_rstd, int64_t ld_stats,
                              Input<T> x, Input<Any> gain, Input<Any> bias, float eps,
                              Residual<T> residual) {
  constexpr int kColumns = kVector<T>;
  const Place p = place_of<WholeBlock>(teams);
  Sum<T> all{x, residual, p.row};
  each_column<kColumns>(teams, p, all);
  const float mean = sum_over_team<WholeBlock, 0>(all.sum, teams) / float(teams.d);
  const Input<T> in = residual.normed(x);
  SumOfSquaresAbout<T> squares{in, p.row, mean};
  each_column<kColumns>(teams, p, squares);
  const float sum = sum_over_team<WholeBlock, 1>(squares.sum, teams);
  const float r = 1.0f / sqrtf(sum / float(teams.d) + eps);
  if (mean_rstd && p.exists && p.lane == 0) {
    mean_rstd[p.row * ld_stats] = mean;
    mean_rstd[p.row * ld_stats + 1] = r;
  }
  Normalize<T> normalize{y, in, gain, bias, p.row, mean, r};
  each_column<kColumns>(teams, p, normalize);
}

// The sums of w = gain dy and of w (x - mean).
template <class T>
struct WeightedSums {
  Input<T> dy, x;
  Input<Any> gain;
  int64_t row;
  float mean;
  float all = 0, along = 0;
  template <int V>
  __device__ void run(int64_t c) {
    const Floats<V> v = x.template at<V>(row, c), d = dy.template at<V>(row, c),
                    g = gain.at<V>(0, c);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const float w = g[i] * d[i];
      all += w;
      along += w * (v[i] - mean);
    }
  }
};

// dx = r (gain dy - a - c (x - mean)).
template <class T>
struct Gradient {
  Output<T> dx;
  Input<T> dy, x;
  Input<Any> gain;
  int64_t row;
  float mean, r, a, c;
  bool accumulate;
  template <int V>
  __device__ void run(int64_t col) {
    Floats<V> v = x.template at<V>(row, col);
    const Floats<V> d = dy.template at<V>(row, col), g = gain.at<V>(0, col);
#pragma unroll
    for (int i = 0; i < V; ++i) v[i] = r * (g[i] * d[i] - a - c * (v[i] - mean));
    set_or_add<V>(dx, row, col, v, accumulate);
  }
};

template <class T, bool WholeBlock>
__global__ void __launch_bounds__(kNormThreads)
    layer_norm_backward_kernel(Teams teams, Output<T> dx, Input<T> dy, Input<T> x,
                               const float* mean_rstd, int64_t ld_stats, Input<Any> gain,
                               bool accumulate) {
  constexpr int kColumns = kVector<T>;
  const Place p = place_of<WholeBlock>(teams);
  const float mean = p.exists ? mean_rstd[p.row * ld_stats] : 0;
  const float r = p.exists ? mean_rstd[p.row * ld_stats + 1] : 0;
  WeightedSums<T> sums{dy, x, gain, p.row, mean};
  each_column<kColumns>(teams, p, sums);
  const float a = sum_over_team<WholeBlock, 0>(sums.all, teams) / float(teams.d);
  const float c = sum_over_team<WholeBlock, 1>(sums.along, teams) * r * r / float(teams.d);
  Gradient<T> gradient{dx, dy, x, gain, p.row, mean, r, a, c, accumulate};
  each_column<kColumns>(teams, p, gradient);
}

}  // namespace

void layer_norm_forward(Stream& stream, Matrix y, Matrix mean_rstd, ConstMatrix x, ConstMatrix gain,
                        ConstMatrix bias, float eps, const ResidualAdd& add) {
  if (x.rows == 0 || x.cols == 0) return;
  with_norm_type(y.dtype, x.dtype, add, [&]<class T>() {
    const NormLaunch l =
        norm_launch(x, x.cols, kVector<T>,
                    vectors_fit(kVector<T>, {y, x, gain, bias, add.sum, add.delta, add.bias}));
    with_bool(l.whole_block, [&]<bool WholeBlock>() {
      LORASHARD_CUDA_CHECK(launch(layer_norm_forward_kernel<T, WholeBlock>, dim3(l.blocks),
                                  dim3(kNormThreads), 0, stream_of(stream), l.teams, Output<T>(y),
                                  static_cast<float*>(mean_rstd.data), mean_rstd.ld, Input<T>(x),
                                  Input<Any>(gain), Input<Any>(bias), eps, Residual<T>(add)));
    });
  });
}

void layer_norm_backward(Stream& stream, Matrix dx, ConstMatrix dy, ConstMatrix x,
                         ConstMatrix mean_rstd, ConstMatrix gain, bool accumulate) {
  if (x.rows == 0 || x.cols == 0) return;
  with_common_type({dx.dtype, dy.dtype, x.dtype}, [&]<class T>() {
    const NormLaunch l =
        norm_launch(x, x.cols, kVector<T>, vectors_fit(kVector<T>, {dx, dy, x, gain}));
    with_bool(l.whole_block, [&]<bool WholeBlock>() {
      LORASHARD_CUDA_CHECK(launch(
          layer_norm_backward_kernel<T, WholeBlock>, dim3(l.blocks), dim3(kNormThreads), 0,
          stream_of(stream), l.teams, Output<T>(dx), Input<T>(dy), Input<T>(x),
          static_cast<const float*>(mean_rstd.data), mean_rstd.ld, Input<Any>(gain), accumulate));
    });
  });
}

}  // namespace lorashard::cuda
