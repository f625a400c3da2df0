// Flash attention forward on the tensor cores (Dao 2023, algorithm 1): a block keeps its rows'
// queries in shared memory and runs over the keys they see with a running maximum and sum; scores
// exist only as fragments. Keys of the next tile are loaded while this tile's values are used, and
// the values while the scores are computed.
#include "kernels/cuda/attention_tile.h"
#include "kernels/cuda/check.h"

namespace lorashard::cuda {
namespace {

template <int D>
struct ForwardTile {
  static constexpr int kM = D <= 128 ? 2 : 1;  // groups of 16 rows of a warp
  static constexpr int kRows = kAttentionWarps * 16 * kM;
  static constexpr int kKeys = D <= 64 || D == 192 ? 64 : 32;  // what the registers hold
  static constexpr size_t kBytes = tile_bytes<D>(kRows) + 2 * tile_bytes<D>(kKeys);
};

template <int D>
__global__ void __launch_bounds__(kAttentionThreads) attention_forward(AttentionArgs<bf16> a) {
  using Tile = ForwardTile<D>;
  constexpr int M = Tile::kM, N = Tile::kKeys;
  const Problem p = this_problem(a);
  // Blocks are issued in order of their number: the rows that see most keys first.
  const int row0 = int(gridDim.x - 1 - blockIdx.x) * Tile::kRows;
  if (row0 >= p.rows) return;
  const int row_end = row0 + Tile::kRows < p.rows ? row0 + Tile::kRows : p.rows;
  const KeyRange range = keys_seen(p, row0, row_end, a.window);

  bf16* q_tile = dyn_shared<bf16>();
  bf16* k_tile = q_tile + Tile::kRows * kTileLd<D>;
  bf16* v_tile = k_tile + N * kTileLd<D>;
  const auto load_next = [&](bf16* tile, const Rows<const bf16>& x, int key) {
    load_keys<D, N>(tile, a, p, x, key, p.keys);
    copy_commit();
  };
  load_rows<D, Tile::kRows>(q_tile, a, p, a.q, row0, row_end);
  load_next(k_tile, a.k, range.first);

  const int lane = int(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const int warp_row = int(threadIdx.x) / 32 * 16 * M;  // within the block
  // What the warp's rows see between them, for leaving out and for masking whole tiles.
  const int warp_first = row0 + warp_row;
  const int warp_end = warp_first + 16 * M < row_end ? warp_first + 16 * M : row_end;
  const bool any_row = warp_first < row_end;
  const int first_position = any_row ? p.position_of(warp_first) : 0;
  const int last_position = any_row ? p.position_of(warp_end - 1) : -1;
  bf16* own_q = q_tile + warp_row * kTileLd<D>;

  int position[M][2];
  float top[M][2], total[M][2];  // of raw scores; finite, so that differences of maxima are
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      position[m][half] = p.position_of(warp_first + m * 16 + half * 8 + g);
      top[m][half] = -1e30f, total[m][half] = 0;
    }
  FragmentC o[M][D / 8];
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int n = 0; n < D / 8; ++n) o[m][n] = {};
  const float factor = a.scale * kLog2E;

  for (int key = range.first; key < range.end; key += N) {
    const bool seen = key <= last_position && key + N > first_position - a.window + 1;
    copy_wait<0>();
    __syncthreads();  // the keys are there, and no warp uses the values of the last tile any more
    load_next(v_tile, a.v, key);
    FragmentC s[M][N / 8];
    if (seen) product_of_rows<D, M, N>(s, own_q, k_tile);
    copy_wait<0>();
    __syncthreads();  // the values are there, and no warp uses the keys any more
    if (key + N < range.end) load_next(k_tile, a.k, key + N);
    if (!seen) continue;

    const bool whole = key + N - 1 <= first_position && key > last_position - a.window;
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float high = top[m][half];
#pragma unroll
        for (int n = 0; n < N / 8; ++n)
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            float& x = s[m][n].x[2 * half + c];
            const int distance = position[m][half] - (key + n * 8 + 2 * t + c);
            if (!whole && (distance < 0 || distance >= a.window)) x = -INFINITY;
            high = fmaxf(high, x);
          }
        high = quad_max(high);
        const float correction = exp2_approx((top[m][half] - high) * factor);
        const float shift = high * factor;
        top[m][half] = high;
        float sum = 0;
#pragma unroll
        for (int n = 0; n < N / 8; ++n)
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            float& x = s[m][n].x[2 * half + c];
            x = exp2_approx(x * factor - shift);
            sum += x;
          }
        total[m][half] = total[m][half] * correction + sum;  // of this lane's columns
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
          o[m][n].x[2 * half] *= correction;
          o[m][n].x[2 * half + 1] *= correction;
        }
      }
    add_product<D, M, N>(o, s, v_tile);
  }

#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      total[m][half] = quad_sum(total[m][half]);
      const int row = warp_first + m * 16 + half * 8 + g;
      if (t == 0 && row < row_end && a.write_lse.data != nullptr)
        *head_element(a.write_lse, p, row) = top[m][half] * a.scale + logf(total[m][half]);
    }
  store_rows<D, M>(
      o, own_q, a.head_dim, a.vectors, [&](int m, int half) { return 1.0f / total[m][half]; },
      [&](int i) -> bf16* {
        if (warp_first + i >= row_end) return nullptr;
        return query_row(a.write_o, p, warp_first + i, a.head_dim);
      });
}

}  // namespace

void own_forward(cudaStream_t stream, const AttentionArgs<bf16>& args, const AttentionGrid& grid) {
  for_tile_width(args.head_dim, [&](auto width) {
    using Tile = ForwardTile<width>;
    LORASHARD_CUDA_CHECK(allow_shared(attention_forward<width>, Tile::kBytes));
    for_grids(args, grid, row_blocks(args, grid, Tile::kRows), [&](dim3 blocks, const auto& part) {
      LORASHARD_CUDA_CHECK(launch(attention_forward<width>, blocks, dim3(kAttentionThreads),
                                  Tile::kBytes, stream, part));
    });
  });
}

}  // namespace lorashard::cuda
