// Flash attention backward on the tensor cores (Dao 2023, algorithm 2), without atomics: every sum
// is formed by one warp in one order, so the same input gives the same bits. One kernel runs over
// the keys for dq, the other over the rows of all the group's query heads for dk and dv; both
// recompute the weights p from lse. With p the weights and delta = sum over D of d_o * o:
//   dv = p^T d_o,  ds = p * (d_o v^T - delta),  dq = scale ds k,  dk = scale ds^T q.
#include "kernels/cuda/attention_delta.h"
#include "kernels/cuda/attention_tile.h"
#include "kernels/cuda/check.h"

namespace lorashard::cuda {
namespace {

// What the mask and the weights need of one row.
struct RowState {
  float lse, delta;  // lse times log2(e); infinite for rows that do not exist, so that p = 0
  int position;
};
__device__ __forceinline__ RowState row_state(const AttentionArgs<bf16>& a, const Problem& p,
                                              int row) {
  if (row >= p.rows) return {INFINITY, 0, 0};
  return {*head_element(a.lse, p, row) * kLog2E, *head_element(a.delta, p, row),
          p.position_of(row)};
}

template <int D>
struct QueryTile {
  static constexpr int kM = D <= 64 ? 2 : 1;
  static constexpr int kRows = kAttentionWarps * 16 * kM;
  static constexpr int kKeys = D == 32 || D == 96 ? 64 : 32;
  static constexpr size_t kBytes = 2 * tile_bytes<D>(kRows) + 4 * tile_bytes<D>(kKeys);
};

template <int D>
__global__ void __launch_bounds__(kAttentionThreads) attention_dq(AttentionArgs<bf16> a) {
  using Tile = QueryTile<D>;
  constexpr int M = Tile::kM, N = Tile::kKeys;
  const Problem p = this_problem(a);
  const int row0 = int(gridDim.x - 1 - blockIdx.x) * Tile::kRows;
  if (row0 >= p.rows) return;
  const int row_end = row0 + Tile::kRows < p.rows ? row0 + Tile::kRows : p.rows;
  const KeyRange range = keys_seen(p, row0, row_end, a.window);

  bf16* q_tile = dyn_shared<bf16>();
  bf16* g_tile = q_tile + Tile::kRows * kTileLd<D>;
  bf16* key_tiles = g_tile + Tile::kRows * kTileLd<D>;  // two of keys and values in turn
  const auto load_next = [&](bf16* tile, int key) {
    load_keys<D, N>(tile, a, p, a.k, key, p.keys);
    load_keys<D, N>(tile + N * kTileLd<D>, a, p, a.v, key, p.keys);
    copy_commit();
  };
  load_rows<D, Tile::kRows>(q_tile, a, p, a.q, row0, row_end);
  load_rows<D, Tile::kRows>(g_tile, a, p, a.d_o, row0, row_end);
  load_next(key_tiles, range.first);

  const int lane = int(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const int warp_row = int(threadIdx.x) / 32 * 16 * M, warp_first = row0 + warp_row;
  const int warp_end = warp_first + 16 * M < row_end ? warp_first + 16 * M : row_end;
  const bool any_row = warp_first < row_end;
  const int first_position = any_row ? p.position_of(warp_first) : 0;
  const int last_position = any_row ? p.position_of(warp_end - 1) : -1;
  bf16* own_q = q_tile + warp_row * kTileLd<D>;
  const bf16* own_g = g_tile + warp_row * kTileLd<D>;

  RowState state[M][2];
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      state[m][half] = row_state(a, p, warp_first + m * 16 + half * 8 + g);
  FragmentC dq[M][D / 8];
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int n = 0; n < D / 8; ++n) dq[m][n] = {};
  const float factor = a.scale * kLog2E;

  for (int key = range.first, turn = 0; key < range.end; key += N, turn ^= 1) {
    const bf16* k_tile = key_tiles + turn * 2 * N * kTileLd<D>;
    const bf16* v_tile = k_tile + N * kTileLd<D>;
    copy_wait<0>();
    __syncthreads();  // this tile is there, and no warp uses the last one any more
    if (key + N < range.end) load_next(key_tiles + (turn ^ 1) * 2 * N * kTileLd<D>, key + N);
    if (key > last_position || key + N <= first_position - a.window + 1) continue;

    FragmentC s[M][N / 8], ds[M][N / 8];
    product_of_rows<D, M, N>(s, own_q, k_tile);
    product_of_rows<D, M, N>(ds, own_g, v_tile);
    const bool whole = key + N - 1 <= first_position && key > last_position - a.window;
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int n = 0; n < N / 8; ++n)
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const RowState& row = state[m][c / 2];
          float weight = exp2_approx(s[m][n].x[c] * factor - row.lse);
          const int distance = row.position - (key + n * 8 + 2 * t + c % 2);
          if (!whole && (distance < 0 || distance >= a.window)) weight = 0;
          ds[m][n].x[c] = weight * (ds[m][n].x[c] - row.delta);
        }
    add_product<D, M, N>(dq, ds, k_tile);
  }
  store_rows<D, M>(
      dq, own_q, a.head_dim, a.vectors, [&](int, int) { return a.scale; },
      [&](int i) -> bf16* {
        if (warp_first + i >= row_end) return nullptr;
        return query_row(a.dq, p, warp_first + i, a.head_dim);
      });
}

// The accumulators of dk and dv of a wide head do not fit into the registers together: such heads
// take two launches.
template <int D>
struct KeyTile {
  static constexpr bool kTogether = D <= 128;
  static constexpr int kM = D <= 64 ? 2 : 1;
  static constexpr int kKeys = kAttentionWarps * 16 * kM, kRows = 32;
  static constexpr size_t kBytes = 2 * tile_bytes<D>(kKeys) + 4 * tile_bytes<D>(kRows);
};

// Scores stand transposed here, keys down and rows across, so that p^T and ds^T are A fragments.
template <int D, bool kDk, bool kDv>
__global__ void __launch_bounds__(kAttentionThreads) attention_dkv(AttentionArgs<bf16> a) {
  using Tile = KeyTile<D>;
  constexpr int M = Tile::kM, N = Tile::kRows;
  const Problem p = this_problem(a);
  const int key0 = int(blockIdx.x) * Tile::kKeys;
  if (key0 >= p.keys) return;
  const int key_end = key0 + Tile::kKeys < p.keys ? key0 + Tile::kKeys : p.keys;
  const KeyRange range = rows_seeing(p, key0, key_end, a.window);

  bf16* k_tile = dyn_shared<bf16>();
  bf16* v_tile = k_tile + Tile::kKeys * kTileLd<D>;
  bf16* row_tiles = v_tile + Tile::kKeys * kTileLd<D>;  // two of queries and d_o in turn
  SHARED_ARRAY(RowState, states, 2 * N);
  const auto load_next = [&](int turn, int row) {
    bf16* tile = row_tiles + turn * 2 * N * kTileLd<D>;
    load_rows<D, N>(tile, a, p, a.q, row, range.end);
    load_rows<D, N>(tile + N * kTileLd<D>, a, p, a.d_o, row, range.end);
    copy_commit();
    if (threadIdx.x < N) {
      const int own = row + int(threadIdx.x);
      states[turn * N + int(threadIdx.x)] = row_state(a, p, own < range.end ? own : p.rows);
    }
  };
  load_keys<D, Tile::kKeys>(k_tile, a, p, a.k, key0, key_end);
  load_keys<D, Tile::kKeys>(v_tile, a, p, a.v, key0, key_end);
  if (range.first < range.end) load_next(0, range.first);

  const int lane = int(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const int warp_key = int(threadIdx.x) / 32 * 16 * M, warp_first = key0 + warp_key;
  const int warp_end = warp_first + 16 * M < key_end ? warp_first + 16 * M : key_end;
  bf16* own_k = k_tile + warp_key * kTileLd<D>;
  bf16* own_v = v_tile + warp_key * kTileLd<D>;

  FragmentC dk[kDk ? M : 1][D / 8], dv[kDv ? M : 1][D / 8];
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      if constexpr (kDk) dk[m][n] = {};
      if constexpr (kDv) dv[m][n] = {};
    }
  const float factor = a.scale * kLog2E;

  for (int row = range.first, turn = 0; row < range.end; row += N, turn ^= 1) {
    const bf16* q_tile = row_tiles + turn * 2 * N * kTileLd<D>;
    const bf16* g_tile = q_tile + N * kTileLd<D>;
    copy_wait<0>();
    __syncthreads();  // this tile is there, and no warp uses the last one any more
    if (row + N < range.end) load_next(turn ^ 1, row + N);
    const int last = row + N < range.end ? row + N - 1 : range.end - 1;
    const int first_position = p.position_of(row), last_position = p.position_of(last);
    if (warp_first >= warp_end || warp_first > last_position ||
        warp_end <= first_position - a.window + 1)
      continue;

    const bool whole = warp_end - 1 <= first_position && warp_first > last_position - a.window;
    FragmentC s[M][N / 8];
    product_of_rows<D, M, N>(s, own_k, q_tile);
#pragma unroll
    for (int n = 0; n < N / 8; ++n)
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const RowState& r = states[turn * N + n * 8 + 2 * t + c];
        const float lse = r.lse;
        const int position = r.position;
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            float& weight = s[m][n].x[2 * half + c];
            const int distance = position - (warp_first + m * 16 + half * 8 + g);
            weight = exp2_approx(weight * factor - lse);
            if (!whole && (distance < 0 || distance >= a.window)) weight = 0;
          }
      }
    if constexpr (kDv) add_product<D, M, N>(dv, s, g_tile);
    if constexpr (kDk) {
      FragmentC ds[M][N / 8];
      product_of_rows<D, M, N>(ds, own_v, g_tile);
#pragma unroll
      for (int n = 0; n < N / 8; ++n)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const float delta = states[turn * N + n * 8 + 2 * t + c].delta;
#pragma unroll
          for (int m = 0; m < M; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              float& x = ds[m][n].x[2 * half + c];
              x = s[m][n].x[2 * half + c] * (x - delta);
            }
        }
      add_product<D, M, N>(dk, ds, q_tile);
    }
  }

  copy_wait<0>();
  __syncthreads();  // all copies of keys and values are over, though there may have been no rows
  const auto address = [&](const Rows<bf16>& x, int i) -> bf16* {
    if (warp_first + i >= key_end) return nullptr;
    return x.at(p.k0 + warp_first + i, int64_t(p.kv_head) * a.head_dim);
  };
  if constexpr (kDk)
    store_rows<D, M>(
        dk, own_k, a.head_dim, a.vectors, [&](int, int) { return a.scale; },
        [&](int i) { return address(a.dk, i); });
  if constexpr (kDv)
    store_rows<D, M>(
        dv, own_v, a.head_dim, a.vectors, [&](int, int) { return 1.0f; },
        [&](int i) { return address(a.dv, i); });
}

template <int D, bool kDk, bool kDv>
void launch_dkv(cudaStream_t stream, const AttentionArgs<bf16>& args, const AttentionGrid& grid) {
  using Tile = KeyTile<D>;
  const auto kernel = attention_dkv<D, kDk, kDv>;
  LORASHARD_CUDA_CHECK(allow_shared(kernel, Tile::kBytes));
  const int64_t blocks = (grid.max_keys + Tile::kKeys - 1) / Tile::kKeys;
  for_grids(args, grid, blocks, [&](dim3 size, const AttentionArgs<bf16>& part) {
    LORASHARD_CUDA_CHECK(launch(kernel, size, dim3(kAttentionThreads), Tile::kBytes, stream, part));
  });
}

}  // namespace

void own_backward(cudaStream_t stream, const AttentionArgs<bf16>& args, const AttentionGrid& grid) {
  attention_delta(stream, args, grid);
  for_tile_width(args.head_dim, [&](auto width) {
    using Tile = QueryTile<width>;
    const auto kernel = attention_dq<width>;
    LORASHARD_CUDA_CHECK(allow_shared(kernel, Tile::kBytes));
    for_grids(args, grid, row_blocks(args, grid, Tile::kRows),
              [&](dim3 size, const AttentionArgs<bf16>& part) {
                LORASHARD_CUDA_CHECK(
                    launch(kernel, size, dim3(kAttentionThreads), Tile::kBytes, stream, part));
              });
    if constexpr (KeyTile<width>::kTogether) {
      launch_dkv<width, true, true>(stream, args, grid);
    } else {
      launch_dkv<width, true, false>(stream, args, grid);
      launch_dkv<width, false, true>(stream, args, grid);
    }
  });
}

}  // namespace lorashard::cuda
