#include "kernels/rms_norm.h"

#include <cassert>

#include "kernels/cuda/kernels.h"
#include "kernels/cuda/map_rows.h"
#include "kernels/cuda/reduce.h"

namespace lorashard::cuda {
namespace {

constexpr int kThreads = 256;

// Up to this many vectors a group is the work of a part of a warp, which needs no barriers and lets
// one block serve many heads; longer ones take a block each. Either way the second pass finds the
// group in the L1 cache.
constexpr int64_t kWarpVectors = 128;

// How a matrix is shared out over teams of threads, one team a group.
struct Teams {
  uint32_t count, groups;  // all groups, and those of a row; rows times heads stay below 2^31
  int64_t d;               // columns of a group
  int64_t vectors;         // whole vectors in a group; the columns after them go one by one
  int lanes;               // threads of a team; kThreads: the block
};

// One team's place.
struct Place {
  int64_t row, group;
  int lane;
  bool exists;
};

template <bool WholeBlock>
__device__ __forceinline__ Place place_of(const Teams& t) {
  const uint32_t lanes = uint32_t(t.lanes);
  const uint32_t team =
      WholeBlock ? blockIdx.x : blockIdx.x * (kThreads / lanes) + threadIdx.x / lanes;
  const uint32_t row = team / t.groups;
  return {row, team - row * t.groups, int(WholeBlock ? threadIdx.x : threadIdx.x % lanes),
          team < t.count};
}

// Calls body.run<V>(column) for all columns of a group, shared out over the team.
template <int VECTOR, class Body>
__device__ __forceinline__ void each_column(const Teams& t, const Place& p, Body& body) {
  if (!p.exists) return;
#pragma unroll 1
  for (int64_t u = p.lane; u < t.vectors; u += t.lanes) body.template run<VECTOR>(u * VECTOR);
#pragma unroll 1
  for (int64_t c = t.vectors * VECTOR + p.lane; c < t.d; c += t.lanes) body.template run<1>(c);
}

template <bool WholeBlock>
__device__ __forceinline__ float sum_over_team(float x, const Teams& t) {
  if constexpr (WholeBlock) {
    SHARED_ARRAY(float, parts, kThreads / 32);
    return block_sum<kThreads>(x, parts);
  } else {
    return team_sum(x, t.lanes);
  }
}

template <class T>
struct SumOfSquares {
  Input<T> x;
  int64_t row, first;
  float sum = 0;
  template <int V>
  __device__ void run(int64_t c) {
    const Floats<V> v = x.template at<V>(row, first + c);
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
__global__ void __launch_bounds__(kThreads)
    rms_norm_forward_kernel(Teams teams, Output<T> y, float* rstd, int64_t ld_rstd, Input<T> x,
                            Input<Any> gain, float eps, float gain_offset) {
  constexpr int kColumns = kVector<T>;
  const Place p = place_of<WholeBlock>(teams);
  const int64_t first = p.group * teams.d;
  SumOfSquares<T> squares{x, p.row, first};
  each_column<kColumns>(teams, p, squares);
  const float sum = sum_over_team<WholeBlock>(squares.sum, teams);
  const float r = 1.0f / sqrtf(sum / float(teams.d) + eps);
  if (rstd && p.exists && p.lane == 0) rstd[p.row * ld_rstd + p.group] = r;
  Normalize<T> normalize{y, x, gain, gain_offset, p.row, first, r};
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
    if (accumulate) {
      const Floats<V> before = dx.template at<V>(row, first + c);
#pragma unroll
      for (int i = 0; i < V; ++i) v[i] += before[i];
    }
    dx.template set<V>(row, first + c, v);
  }
};

template <class T, bool WholeBlock>
__global__ void __launch_bounds__(kThreads)
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

struct Launch {
  Teams teams;
  unsigned blocks;
  bool whole_block;
};

// `fits`: whole vectors of `columns` may be moved.
Launch plan(ConstMatrix x, int64_t d, int columns, bool fits) {
  const int64_t groups = x.cols / d, count = x.rows * groups;
  assert(count <= INT32_MAX);
  Launch l{
      {uint32_t(count), uint32_t(groups), d, fits && d % columns == 0 ? d / columns : 0, kThreads},
      0,
      true};
  const int64_t units = l.teams.vectors ? l.teams.vectors : d;
  l.whole_block = units > kWarpVectors;
  if (!l.whole_block) {
    l.teams.lanes = 32;
    while (l.teams.lanes / 2 >= units) l.teams.lanes /= 2;
  }
  const int64_t per_block = kThreads / l.teams.lanes;
  l.blocks = unsigned((count + per_block - 1) / per_block);
  return l;
}

template <class F>
void with_bool(bool b, F f) {
  if (b)
    f.template operator()<true>();
  else
    f.template operator()<false>();
}

}  // namespace

void rms_norm_forward(Stream& stream, Matrix y, Matrix rstd, ConstMatrix x, ConstMatrix gain,
                      float eps, float gain_offset) {
  if (x.rows == 0 || x.cols == 0) return;
  with_common_type({y.dtype, x.dtype}, [&]<class T>() {
    constexpr int kColumns = kVector<T>;
    const Launch l = plan(x, gain.cols, kColumns, vectors_fit(kColumns, {y, x, gain}));
    with_bool(l.whole_block, [&]<bool WholeBlock>() {
      LORASHARD_CUDA_CHECK(launch(rms_norm_forward_kernel<T, WholeBlock>, dim3(l.blocks),
                                  dim3(kThreads), 0, stream_of(stream), l.teams, Output<T>(y),
                                  static_cast<float*>(rstd.data), rstd.ld, Input<T>(x),
                                  Input<Any>(gain), eps, gain_offset));
    });
  });
}

void rms_norm_backward(Stream& stream, Matrix dx, ConstMatrix dy, ConstMatrix x, ConstMatrix rstd,
                       ConstMatrix gain, float gain_offset, bool accumulate) {
  if (x.rows == 0 || x.cols == 0) return;
  with_common_type({dx.dtype, dy.dtype, x.dtype}, [&]<class T>() {
    constexpr int kColumns = kVector<T>;
    const Launch l = plan(x, gain.cols, kColumns, vectors_fit(kColumns, {dx, dy, x, gain}));
    with_bool(l.whole_block, [&]<bool WholeBlock>() {
      LORASHARD_CUDA_CHECK(launch(rms_norm_backward_kernel<T, WholeBlock>, dim3(l.blocks),
                                  dim3(kThreads), 0, stream_of(stream), l.teams, Output<T>(dx),
                                  Input<T>(dy), Input<T>(x), static_cast<const float*>(rstd.data),
                                  rstd.ld, Input<Any>(gain), gain_offset, accumulate));
    });
  });
}

}  // namespace lorashard::cuda
