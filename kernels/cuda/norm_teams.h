// How the norms share out their work: teams of threads, each with one group of columns of one row.
#pragma once

#include <cassert>

#include "kernels/cuda/operands.h"
#include "kernels/cuda/reduce.h"
#include "kernels/residual.h"

namespace lorashard::cuda {

inline constexpr int kNormThreads = 256;

// Up to this many vectors a group is the work of a part of a warp, which needs no barriers and lets
// one block serve many heads; longer ones take a block each. Either way the second read finds the
// group in the L1 cache.
inline constexpr int64_t kWarpVectors = 128;

// How a matrix is shared out over teams of threads, one team a group.
struct Teams {
  uint32_t count, groups;  // all groups, and those of a row; rows times heads stay below 2^31
  int64_t d;               // columns of a group
  int64_t vectors;         // whole vectors in a group; the columns after them go one by one
  int lanes;               // threads of a team; kNormThreads: the block
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
      WholeBlock ? blockIdx.x : blockIdx.x * (kNormThreads / lanes) + threadIdx.x / lanes;
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

// Sums of one kernel that differ in SLOT need no barrier between them.
template <bool WholeBlock, int SLOT = 0>
__device__ __forceinline__ float sum_over_team(float x, const Teams& t) {
  if constexpr (WholeBlock) {
    SHARED_ARRAY(float, parts, kNormThreads / 32);
    return block_sum<kNormThreads>(x, parts);
  } else {
    return team_sum(x, t.lanes);
  }
}

// ResidualAdd on the device. Every element is added, written and read again by one thread.
template <class T>
struct Residual {
  Output<T> sum;
  Input<T> delta;
  Input<Any> bias;
  explicit Residual(const ResidualAdd& add) : sum(add.sum), delta(add.delta), bias(add.bias) {}
  // What the norm works on, in its first read and after it.
  template <int V>
  __device__ __forceinline__ Floats<V> add_to(const Input<T>& x, int64_t row, int64_t col) const {
    Floats<V> v = x.template at<V>(row, col);
    if (!sum.exists()) return v;
    Floats<V> d = delta.template at<V>(row, col);
    if (bias.exists()) {
      const Floats<V> b = bias.at<V>(0, col);
#pragma unroll
      for (int i = 0; i < V; ++i) d[i] += b[i];
    }
#pragma unroll
    for (int i = 0; i < V; ++i) v[i] += d[i];
    sum.template set<V>(row, col, v);
    return sum.template at<V>(row, col);
  }
  __device__ __forceinline__ Input<T> normed(const Input<T>& x) const {
    return sum.exists() ? static_cast<const Input<T>&>(sum) : x;
  }
};

// Calls f with the type that all activations of a norm have, or Any.
template <class F>
void with_norm_type(DType y, DType x, const ResidualAdd& add, F f) {
  with_common_type({y, x, add ? add.sum.dtype : x, add ? add.delta.dtype : x}, f);
}

struct NormLaunch {
  Teams teams;
  unsigned blocks;
  bool whole_block;
};

// `fits`: whole vectors of `columns` may be moved.
inline NormLaunch norm_launch(ConstMatrix x, int64_t d, int columns, bool fits) {
  const int64_t groups = x.cols / d, count = x.rows * groups;
  assert(count <= INT32_MAX);
  NormLaunch l{{uint32_t(count), uint32_t(groups), d, fits && d % columns == 0 ? d / columns : 0,
                kNormThreads},
               0,
               true};
  const int64_t units = l.teams.vectors ? l.teams.vectors : d;
  l.whole_block = units > kWarpVectors;
  if (!l.whole_block) {
    l.teams.lanes = 32;
    while (l.teams.lanes / 2 >= units) l.teams.lanes /= 2;
  }
  const int64_t per_block = kNormThreads / l.teams.lanes;
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

}  // namespace lorashard::cuda
