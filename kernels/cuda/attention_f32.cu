// Attention in plain fp32 arithmetic, for compute.dtype FP32 (the parity mode): the algorithms of
// attention_forward.cu and attention_backward.cu without tensor cores. The same input gives the
// same bits.
//
// A block works on 32 rows (dk and dv: keys). Eight lanes share a row: each computes the scores of
// four of the 32 keys of a tile, then sums its columns, lane + 8 j, of the row's result.
#include "kernels/cuda/attention_delta.h"
#include "kernels/cuda/attention_rows.h"
#include "kernels/cuda/check.h"

namespace lorashard::cuda {
namespace {

constexpr int kThreads = 256, kLanes = 8, kTile = kThreads / kLanes, kScores = kTile / kLanes;
static_assert(kTile == 32);
constexpr float kMasked = -INFINITY;

// Tiles of 32 rows in shared memory; the odd distance keeps lanes that read a column apart.
struct Tiles {
  int ld;
  __device__ __forceinline__ float* operator[](int i) const {
    return dyn_shared<float>() + i * kTile * ld;
  }
};
__host__ __device__ constexpr int tile_ld(int head_dim) { return head_dim | 1; }
constexpr size_t tiles_bytes(int head_dim, int tiles) {
  return size_t(tiles) * kTile * size_t(tile_ld(head_dim)) * sizeof(float);
}

// tile(32, head_dim) = the rows at row(i), zeros where that is null.
template <class RowAddress>
__device__ __forceinline__ void load_rows(float* tile, int ld, int head_dim, RowAddress row) {
  const int lane = int(threadIdx.x) % 32;
  for (int r = int(threadIdx.x) / 32; r < kTile; r += kThreads / 32) {
    const float* from = row(r);
    for (int c = lane; c < head_dim; c += 32) tile[r * ld + c] = from != nullptr ? from[c] : 0.0f;
  }
}

__device__ __forceinline__ float dot(const float* x, const float* y, int n) {
  float sum = 0;
  for (int c = 0; c < n; ++c) sum += x[c] * y[c];
  return sum;
}

// sum[j] += sum over i of weights[i] * tile(i, lane + 8 j).
template <int kColumns>
__device__ __forceinline__ void add_rows(float (&sum)[kColumns], const float* weights,
                                         const float* tile, int ld, int lane, int head_dim) {
  for (int i = 0; i < kTile; ++i) {
    const float w = weights[i];
    const float* row = tile + i * ld;
#pragma unroll
    for (int j = 0; j < kColumns; ++j)
      if (lane + kLanes * j < head_dim) sum[j] += w * row[lane + kLanes * j];
  }
}

__device__ __forceinline__ float lanes_max(float x) {
  for (int i = kLanes / 2; i > 0; i /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, i, kLanes));
  return x;
}
__device__ __forceinline__ float lanes_sum(float x) {
  for (int i = kLanes / 2; i > 0; i /= 2) x += __shfl_xor_sync(~0u, x, i, kLanes);
  return x;
}

__device__ __forceinline__ const float* key_row(const AttentionArgs<float>& a, const Problem& p,
                                                const Rows<const float>& x, int key, int end) {
  return key < end ? x.at(p.k0 + key, int64_t(p.kv_head) * a.head_dim) : nullptr;
}
__device__ __forceinline__ const float* row_of(const AttentionArgs<float>& a, const Problem& p,
                                               const Rows<const float>& x, int row, int end) {
  return row < end ? query_row(x, p, row, a.head_dim) : nullptr;
}

__device__ __forceinline__ bool sees(int position, int key, int window) {
  return key <= position && position - key < window;
}

// kColumns * 8 >= head_dim.
template <int kColumns>
__global__ void __launch_bounds__(kThreads, 2) forward_f32(AttentionArgs<float> a) {
  const Problem p = this_problem(a);
  const int row0 = int(gridDim.x - 1 - blockIdx.x) * kTile;
  if (row0 >= p.rows) return;
  const int row_end = row0 + kTile < p.rows ? row0 + kTile : p.rows;
  const KeyRange range = keys_seen(p, row0, row_end, a.window);
  const Tiles tiles{tile_ld(a.head_dim)};
  float *q = tiles[0], *k = tiles[1], *v = tiles[2];
  SHARED_ARRAY(float, weights, kTile*(kTile + 1));
  const int own = int(threadIdx.x) / kLanes, lane = int(threadIdx.x) % kLanes, row = row0 + own;
  const int position = p.position_of(row);
  float* own_weights = weights + own * (kTile + 1);

  load_rows(q, tiles.ld, a.head_dim, [&](int i) { return row_of(a, p, a.q, row0 + i, row_end); });
  float top = -1e30f, total = 0, o[kColumns] = {};
  for (int key = range.first; key < range.end; key += kTile) {
    __syncthreads();  // no thread uses the last tile any more
    load_rows(k, tiles.ld, a.head_dim, [&](int i) { return key_row(a, p, a.k, key + i, p.keys); });
    load_rows(v, tiles.ld, a.head_dim, [&](int i) { return key_row(a, p, a.v, key + i, p.keys); });
    __syncthreads();
    float s[kScores], high = top;
#pragma unroll
    for (int j = 0; j < kScores; ++j) {
      const int i = lane + kLanes * j;
      s[j] = sees(position, key + i, a.window)
                 ? a.scale * dot(q + own * tiles.ld, k + i * tiles.ld, a.head_dim)
                 : kMasked;
      high = fmaxf(high, s[j]);
    }
    high = lanes_max(high);
    const float correction = expf(top - high);
    top = high;
    total *= correction;
    __syncwarp();
#pragma unroll
    for (int j = 0; j < kScores; ++j) {
      const float w = expf(s[j] - high);
      own_weights[lane + kLanes * j] = w;
      total += w;
    }
    __syncwarp();
#pragma unroll
    for (int j = 0; j < kColumns; ++j) o[j] *= correction;
    add_rows(o, own_weights, v, tiles.ld, lane, a.head_dim);
  }
  total = lanes_sum(total);
  if (row >= row_end) return;
  float* to = query_row(a.write_o, p, row, a.head_dim);
#pragma unroll
  for (int j = 0; j < kColumns; ++j)
    if (lane + kLanes * j < a.head_dim) to[lane + kLanes * j] = o[j] / total;
  if (lane == 0 && a.write_lse.data != nullptr)
    *head_element(a.write_lse, p, row) = top + logf(total);
}

template <int kColumns>
__global__ void __launch_bounds__(kThreads, 2) dq_f32(AttentionArgs<float> a) {
  const Problem p = this_problem(a);
  const int row0 = int(gridDim.x - 1 - blockIdx.x) * kTile;
  if (row0 >= p.rows) return;
  const int row_end = row0 + kTile < p.rows ? row0 + kTile : p.rows;
  const KeyRange range = keys_seen(p, row0, row_end, a.window);
  const Tiles tiles{tile_ld(a.head_dim)};
  float *q = tiles[0], *g = tiles[1], *k = tiles[2], *v = tiles[3];
  SHARED_ARRAY(float, weights, kTile*(kTile + 1));
  const int own = int(threadIdx.x) / kLanes, lane = int(threadIdx.x) % kLanes, row = row0 + own;
  const bool real = row < row_end;
  const int position = p.position_of(row);
  const float lse = real ? *head_element(a.lse, p, row) : INFINITY;
  const float delta = real ? *head_element(a.delta, p, row) : 0;
  float* own_weights = weights + own * (kTile + 1);

  load_rows(q, tiles.ld, a.head_dim, [&](int i) { return row_of(a, p, a.q, row0 + i, row_end); });
  load_rows(g, tiles.ld, a.head_dim, [&](int i) { return row_of(a, p, a.d_o, row0 + i, row_end); });
  float dq[kColumns] = {};
  for (int key = range.first; key < range.end; key += kTile) {
    __syncthreads();
    load_rows(k, tiles.ld, a.head_dim, [&](int i) { return key_row(a, p, a.k, key + i, p.keys); });
    load_rows(v, tiles.ld, a.head_dim, [&](int i) { return key_row(a, p, a.v, key + i, p.keys); });
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kScores; ++j) {
      const int i = lane + kLanes * j;
      float ds = 0;
      if (sees(position, key + i, a.window)) {
        const float w = expf(a.scale * dot(q + own * tiles.ld, k + i * tiles.ld, a.head_dim) - lse);
        ds = w * (dot(g + own * tiles.ld, v + i * tiles.ld, a.head_dim) - delta);
      }
      own_weights[i] = ds;
    }
    __syncwarp();
    add_rows(dq, own_weights, k, tiles.ld, lane, a.head_dim);
  }
  if (!real) return;
  float* to = query_row(a.dq, p, row, a.head_dim);
#pragma unroll
  for (int j = 0; j < kColumns; ++j)
    if (lane + kLanes * j < a.head_dim) to[lane + kLanes * j] = a.scale * dq[j];
}

template <int kColumns>
__global__ void __launch_bounds__(kThreads, 2) dkv_f32(AttentionArgs<float> a) {
  const Problem p = this_problem(a);
  const int key0 = int(blockIdx.x) * kTile;
  if (key0 >= p.keys) return;
  const int key_end = key0 + kTile < p.keys ? key0 + kTile : p.keys;
  const KeyRange range = rows_seeing(p, key0, key_end, a.window);
  const Tiles tiles{tile_ld(a.head_dim)};
  float *k = tiles[0], *v = tiles[1], *q = tiles[2], *g = tiles[3];
  SHARED_ARRAY(float, weights, kTile*(kTile + 1));
  SHARED_ARRAY(float, gradients, kTile*(kTile + 1));
  const int own = int(threadIdx.x) / kLanes, lane = int(threadIdx.x) % kLanes, key = key0 + own;
  float* own_weights = weights + own * (kTile + 1);
  float* own_gradients = gradients + own * (kTile + 1);

  load_rows(k, tiles.ld, a.head_dim, [&](int i) { return key_row(a, p, a.k, key0 + i, key_end); });
  load_rows(v, tiles.ld, a.head_dim, [&](int i) { return key_row(a, p, a.v, key0 + i, key_end); });
  float dk[kColumns] = {}, dv[kColumns] = {};
  for (int row = range.first; row < range.end; row += kTile) {
    __syncthreads();
    load_rows(q, tiles.ld, a.head_dim,
              [&](int i) { return row_of(a, p, a.q, row + i, range.end); });
    load_rows(g, tiles.ld, a.head_dim,
              [&](int i) { return row_of(a, p, a.d_o, row + i, range.end); });
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kScores; ++j) {
      const int i = lane + kLanes * j;
      float w = 0, ds = 0;
      if (row + i < range.end && sees(p.position_of(row + i), key, a.window)) {
        w = expf(a.scale * dot(q + i * tiles.ld, k + own * tiles.ld, a.head_dim) -
                 *head_element(a.lse, p, row + i));
        ds = w * (dot(g + i * tiles.ld, v + own * tiles.ld, a.head_dim) -
                  *head_element(a.delta, p, row + i));
      }
      own_weights[i] = w;
      own_gradients[i] = ds;
    }
    __syncwarp();
    add_rows(dv, own_weights, g, tiles.ld, lane, a.head_dim);
    add_rows(dk, own_gradients, q, tiles.ld, lane, a.head_dim);
  }
  if (key >= key_end) return;
  const int64_t column = int64_t(p.kv_head) * a.head_dim;
  float *to_k = a.dk.at(p.k0 + key, column), *to_v = a.dv.at(p.k0 + key, column);
#pragma unroll
  for (int j = 0; j < kColumns; ++j)
    if (lane + kLanes * j < a.head_dim) {
      to_k[lane + kLanes * j] = a.scale * dk[j];
      to_v[lane + kLanes * j] = dv[j];
    }
}

// Launches a kernel with `tiles` tiles for `blocks` blocks of rows or keys.
void launch_f32(cudaStream_t stream, void (*kernel)(AttentionArgs<float>), int tiles,
                int64_t blocks, const AttentionArgs<float>& args, const AttentionGrid& grid) {
  const size_t bytes = tiles_bytes(args.head_dim, tiles);
  LORASHARD_CUDA_CHECK(allow_shared(kernel, bytes));
  for_grids(args, grid, blocks, [&](dim3 size, const AttentionArgs<float>& part) {
    LORASHARD_CUDA_CHECK(launch(kernel, size, dim3(kThreads), bytes, stream, part));
  });
}

// Calls f(std::integral_constant<int, kColumns>).
template <class F>
void for_columns(int head_dim, F f) {
  if (head_dim <= 64) return f(std::integral_constant<int, 8>{});
  if (head_dim <= 128) return f(std::integral_constant<int, 16>{});
  f(std::integral_constant<int, 32>{});
}

}  // namespace

void own_forward(cudaStream_t stream, const AttentionArgs<float>& args, const AttentionGrid& grid) {
  for_columns(args.head_dim, [&](auto columns) {
    launch_f32(stream, forward_f32<columns>, 3, row_blocks(args, grid, kTile), args, grid);
  });
}

void own_backward(cudaStream_t stream, const AttentionArgs<float>& args,
                  const AttentionGrid& grid) {
  attention_delta(stream, args, grid);
  for_columns(args.head_dim, [&](auto columns) {
    launch_f32(stream, dq_f32<columns>, 4, row_blocks(args, grid, kTile), args, grid);
    launch_f32(stream, dkv_f32<columns>, 4, (grid.max_keys + kTile - 1) / kTile, args, grid);
  });
}

}  // namespace lorashard::cuda
