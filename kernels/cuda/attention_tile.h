// Tiles of bf16 rows in shared memory, and the mma of fragments over them, for the tensor core
// attention kernels.
//
// A tile of N rows holds D columns, padded to D + 8, so that eight rows at one column lie in
// different banks: reads of fragments and 16-byte writes do not collide. Columns from head_dim on,
// and rows that do not exist, are zero.
#pragma once

#include "kernels/cuda/attention_rows.h"
#include "kernels/cuda/mma.h"

namespace lorashard::cuda {

inline constexpr int kAttentionThreads = 128, kAttentionWarps = 4;
inline constexpr float kLog2E = 1.44269504f;

template <int D>
inline constexpr int kTileLd = D + 8;
template <int D>
constexpr size_t tile_bytes(int rows) {
  return size_t(rows) * kTileLd<D> * sizeof(bf16);
}

// Starts loading tile(N, D); row(i) is the address of row i, or null for a row of zeros. With
// `vectors` the bytes come with the next copy_commit() and copy_wait(), without at once.
template <int D, int N, class RowAddress>
__device__ __forceinline__ void load_tile(bf16* tile, int head_dim, bool vectors, const bf16* any,
                                          RowAddress row) {
  constexpr int kChunks = D / 8;
  static_assert(N * kChunks % kAttentionThreads == 0);
  if (vectors) {
#pragma unroll
    for (int j = 0; j < N * kChunks / kAttentionThreads; ++j) {
      const int i = int(threadIdx.x) + j * kAttentionThreads, r = i / kChunks, c = i % kChunks * 8;
      const bf16* from = row(r);
      const bool real = from != nullptr && c < head_dim;
      copy_async(tile + r * kTileLd<D> + c, real ? from + c : any, real);
    }
  } else {
#pragma unroll 1
    for (int i = int(threadIdx.x); i < N * D; i += kAttentionThreads) {
      const int r = i / D, c = i % D;
      const bf16* from = row(r);
      tile[r * kTileLd<D> + c] = from != nullptr && c < head_dim ? from[c] : __float2bfloat16(0.0f);
    }
  }
}

// Tiles of the problem's rows [row, end) of x, a matrix of queries, and of its keys [key, end) of
// x, a matrix of keys; zeros after the end.
template <int D, int N>
__device__ __forceinline__ void load_rows(bf16* tile, const AttentionArgs<bf16>& a,
                                          const Problem& p, const Rows<const bf16>& x, int row,
                                          int end) {
  load_tile<D, N>(tile, a.head_dim, a.vectors, x.data, [&](int i) -> const bf16* {
    return row + i < end ? query_row(x, p, row + i, a.head_dim) : nullptr;
  });
}
template <int D, int N>
__device__ __forceinline__ void load_keys(bf16* tile, const AttentionArgs<bf16>& a,
                                          const Problem& p, const Rows<const bf16>& x, int key,
                                          int end) {
  load_tile<D, N>(tile, a.head_dim, a.vectors, x.data, [&](int i) -> const bf16* {
    return key + i < end ? x.at(p.k0 + key + i, int64_t(p.kv_head) * a.head_dim) : nullptr;
  });
}

// The A fragment of 16 x 16 elements whose first is `at` in a tile.
template <int D>
__device__ __forceinline__ FragmentA load_a(const bf16* at) {
  const int lane = int(threadIdx.x) % 32;
  FragmentA a;
  load_matrices(a.x, at + lane % 16 * kTileLd<D> + lane / 16 * 8);
  return a;
}

// Two B fragments (k 16, n 16) from a tile whose rows are n and columns k: b is the
// tile's transpose.
template <int D>
__device__ __forceinline__ void load_b_rows(FragmentB (&b)[2], const bf16* at) {
  const int lane = int(threadIdx.x) % 32;
  uint32_t r[4];
  load_matrices(r, at + (lane / 16 * 8 + lane % 8) * kTileLd<D> + lane / 8 % 2 * 8);
  b[0] = {{r[0], r[1]}}, b[1] = {{r[2], r[3]}};
}
// Two B fragments (k 16, n 16) from a tile whose rows are k and columns n.
template <int D>
__device__ __forceinline__ void load_b_columns(FragmentB (&b)[2], const bf16* at) {
  const int lane = int(threadIdx.x) % 32;
  uint32_t r[4];
  load_matrices_transposed(r, at + lane % 16 * kTileLd<D> + lane / 16 * 8);
  b[0] = {{r[0], r[1]}}, b[1] = {{r[2], r[3]}};
}

// s(16 M, N) = x(16 M, D) y(N, D)^T, x and y in tiles: fragment [m][n] holds columns 8 n...
// Unrolled further, the loads that are moved ahead take registers that wide heads lack.
template <int D, int M, int N>
__device__ __forceinline__ void product_of_rows(FragmentC (&s)[M][N / 8], const bf16* x,
                                                const bf16* y) {
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int n = 0; n < N / 8; ++n) s[m][n] = {};
#pragma unroll 2
  for (int k = 0; k < D; k += 16) {
    FragmentA a[M];
#pragma unroll
    for (int m = 0; m < M; ++m) a[m] = load_a<D>(x + m * 16 * kTileLd<D> + k);
#pragma unroll
    for (int n = 0; n < N / 16; ++n) {
      FragmentB b[2];
      load_b_rows<D>(b, y + n * 16 * kTileLd<D> + k);
#pragma unroll
      for (int m = 0; m < M; ++m) {
        mma(s[m][2 * n], a[m], b[0]);
        mma(s[m][2 * n + 1], a[m], b[1]);
      }
    }
  }
}

// o(16 M, D) += p(16 M, N) y(N, D), p given as the C fragments of a product_of_rows, rounded to
// bf16 here; y in a tile.
template <int D, int M, int N>
__device__ __forceinline__ void add_product(FragmentC (&o)[M][D / 8],
                                            const FragmentC (&p)[M][N / 8], const bf16* y) {
#pragma unroll
  for (int k = 0; k < N / 16; ++k) {
    FragmentA a[M];
#pragma unroll
    for (int m = 0; m < M; ++m) a[m] = as_a(p[m][2 * k], p[m][2 * k + 1]);
#pragma unroll
    for (int n = 0; n < D / 16; ++n) {
      FragmentB b[2];
      load_b_columns<D>(b, y + k * 16 * kTileLd<D> + n * 16);
#pragma unroll
      for (int m = 0; m < M; ++m) {
        mma(o[m][2 * n], a[m], b[0]);
        mma(o[m][2 * n + 1], a[m], b[1]);
      }
    }
  }
}

// Writes the warp's 16 M rows of accumulators, times factor(m, half), through its rows of a tile
// that no other warp reads any more. row(i) is where row i goes, or null.
template <int D, int M, class Factor, class RowAddress>
__device__ __forceinline__ void store_rows(const FragmentC (&o)[M][D / 8], bf16* tile, int head_dim,
                                           bool vectors, Factor factor, RowAddress row) {
  const int lane = int(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  __syncwarp();
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float f = factor(m, half);
      bf16* to = tile + (m * 16 + half * 8 + g) * kTileLd<D> + 2 * t;
#pragma unroll
      for (int n = 0; n < D / 8; ++n)
        *reinterpret_cast<uint32_t*>(to + n * 8) =
            pack(o[m][n].x[2 * half] * f, o[m][n].x[2 * half + 1] * f);
    }
  __syncwarp();
  constexpr int kChunks = D / 8;
  if (vectors) {
#pragma unroll 4
    for (int i = lane; i < 16 * M * kChunks; i += 32) {
      const int r = i / kChunks, c = i % kChunks * 8;
      bf16* to = row(r);
      if (to != nullptr && c < head_dim)
        *reinterpret_cast<uint4*>(to + c) =
            *reinterpret_cast<const uint4*>(tile + r * kTileLd<D> + c);
    }
  } else {
#pragma unroll 1
    for (int i = lane; i < 16 * M * D; i += 32) {
      const int r = i / D, c = i % D;
      bf16* to = row(r);
      if (to != nullptr && c < head_dim) to[c] = tile[r * kTileLd<D> + c];
    }
  }
}

// Largest value and sum over the four lanes that share a row of C fragments.
__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// The narrowest tile that holds head_dim columns: calls f(std::integral_constant<int, D>).
template <class F>
void for_tile_width(int head_dim, F f) {
  if (head_dim <= 32) return f(std::integral_constant<int, 32>{});
  if (head_dim <= 64) return f(std::integral_constant<int, 64>{});
  if (head_dim <= 96) return f(std::integral_constant<int, 96>{});
  if (head_dim <= 128) return f(std::integral_constant<int, 128>{});
  if (head_dim <= 192) return f(std::integral_constant<int, 192>{});
  f(std::integral_constant<int, 256>{});
}

}  // namespace lorashard::cuda
