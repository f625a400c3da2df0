// LoRA's GEMMs with dropout where all operands are F32: tiles in shared memory, fp32 arithmetic.
#include "kernels/cuda/lora_dropout_kernels.h"

namespace lorashard::cuda {
namespace {

constexpr int kThreads = 256;
// A block makes (kM, kN) of the result, kDepth summands at a time; a thread 2 x 4 of it.
constexpr int kM = 32, kN = 64, kDepth = 32;
constexpr int kLdA = kM + 2, kLdB = kN + 4;  // keep the alignment of pairs and of fours

// The two tiles, [kDepth][kM] and [kDepth][kN], and this thread's sums.
struct Tiles {
  float *a, *b;
  float sum[2][4] = {};

  __device__ __forceinline__ int m() const { return int(threadIdx.x) / 16 * 2; }
  __device__ __forceinline__ int n() const { return int(threadIdx.x) % 16 * 4; }
  // Accumulates the GEMM of what stands in the tiles. The whole block calls it.
  __device__ __forceinline__ void multiply() {
    __syncthreads();
#pragma unroll 8
    for (int k = 0; k < kDepth; ++k) {
      const Floats<2> left = load<2>(a + k * kLdA + m());
      const Floats<4> right = load<4>(b + k * kLdB + n());
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] += left[i] * right[j];
    }
    __syncthreads();
  }
};

// Columns 4 quad to 4 quad + 3 of the mask in a row of dropout(x); zero outside the matrix.
__device__ __forceinline__ Floats<4> dropped(const Factor& x, const MaskOnDevice& mask, int64_t row,
                                             int64_t quad) {
  Floats<4> v = x.four(row, 4 * quad - mask.skew);
  if (row < x.rows) {
    const Words words = mask.words(mask.row_keys[row], uint64_t(quad));
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = mask.apply(words.w[i], v[i]);
  }
  return v;
}

// m: lora_rank, n: rows of x, summed over columns.
__global__ void __launch_bounds__(kThreads)
    lora_dropout_forward_f32(Factor x, MaskOnDevice mask, Factor a, Split out) {
  SHARED_ARRAY(float, tile_a, kDepth* kLdA);
  SHARED_ARRAY(float, tile_b, kDepth* kLdB);
  Tiles tiles{tile_a, tile_b};
  const int64_t row = int64_t{blockIdx.x} * kN, rank = int64_t{blockIdx.z} * kM;
  const int64_t begin = int64_t{blockIdx.y} * out.size;
  const int64_t end = min(x.cols + mask.skew, begin + out.size);
  const int quad = int(threadIdx.x) % 8, line = int(threadIdx.x) / 8;
#pragma unroll 1
  for (int64_t c = begin; c < end; c += kDepth) {
    const Floats<4> f = a.four(rank + line, c + 4 * quad - mask.skew);
#pragma unroll
    for (int i = 0; i < 4; ++i) tile_a[(4 * quad + i) * kLdA + line] = f[i];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Floats<4> v = dropped(x, mask, row + line + 32 * half, c / 4 + quad);
#pragma unroll
      for (int i = 0; i < 4; ++i) tile_b[(4 * quad + i) * kLdB + line + 32 * half] = v[i];
    }
    tiles.multiply();
  }
  float* part = out.data + blockIdx.y * out.stride;
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (rank + tiles.m() + i < a.rows && row + tiles.n() + j < x.rows)
        part[(row + tiles.n() + j) * out.ld + rank + tiles.m() + i] = tiles.sum[i][j];
}

// m: lora_rank, n: columns, summed over rows.
__global__ void __launch_bounds__(kThreads)
    lora_dropout_wgrad_f32(Factor x, MaskOnDevice mask, Factor t, Split out) {
  SHARED_ARRAY(float, tile_a, kDepth* kLdA);
  SHARED_ARRAY(float, tile_b, kDepth* kLdB);
  Tiles tiles{tile_a, tile_b};
  const int64_t col = int64_t{blockIdx.x} * kN, rank = int64_t{blockIdx.z} * kM;
  const int64_t begin = int64_t{blockIdx.y} * out.size, end = min(x.rows, begin + out.size);
  const int quad = int(threadIdx.x) % 16, line = int(threadIdx.x) / 16;
#pragma unroll 1
  for (int64_t row = begin; row < end; row += kDepth) {
#pragma unroll
    for (int i = 0; i < kDepth * kM / kThreads; ++i) {
      const int at = int(threadIdx.x) + i * kThreads;
      tile_a[at / kM * kLdA + at % kM] = t.at(row + at / kM, rank + at % kM);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half)
      store(tile_b + (line + 16 * half) * kLdB + 4 * quad,
            dropped(x, mask, row + line + 16 * half, col / 4 + quad));
    tiles.multiply();
  }
  float* part = out.data + blockIdx.y * out.stride;
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t r = rank + tiles.m() + i, c = col + tiles.n() + j - mask.skew;
      if (r >= t.cols || c < 0 || c >= x.cols) continue;
      float& y = part[r * out.ld + c];
      y = out.parts == 1 ? y + tiles.sum[i][j] : tiles.sum[i][j];
    }
}

// m: rows, n: columns, summed over lora_rank.
__global__ void __launch_bounds__(kThreads)
    lora_dropout_dgrad_f32(Factor dx, MaskOnDevice mask, Factor t, Factor a) {
  SHARED_ARRAY(float, tile_a, kDepth* kLdA);
  SHARED_ARRAY(float, tile_b, kDepth* kLdB);
  Tiles tiles{tile_a, tile_b};
  const int64_t col = int64_t{blockIdx.x} * kN, row = int64_t{blockIdx.y} * kM;
#pragma unroll 1
  for (int64_t rank = 0; rank < a.rows; rank += kDepth) {
#pragma unroll
    for (int i = 0; i < kDepth * kM / kThreads; ++i) {
      const int at = int(threadIdx.x) + i * kThreads;
      tile_a[at % kDepth * kLdA + at / kDepth] = t.at(row + at / kDepth, rank + at % kDepth);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int line = int(threadIdx.x) / 16 + 16 * half, quad = int(threadIdx.x) % 16;
      store(tile_b + line * kLdB + 4 * quad, a.four(rank + line, col + 4 * quad - mask.skew));
    }
    tiles.multiply();
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int64_t r = row + tiles.m() + i, c = col + tiles.n() - mask.skew;
    if (r >= dx.rows) continue;
    const Words words = mask.words(mask.row_keys[r], uint64_t(col + tiles.n()) / 4);
    Floats<4> y = dx.four(r, c);
#pragma unroll
    for (int j = 0; j < 4; ++j) y[j] += mask.apply(words.w[j], tiles.sum[i][j]);
    float* to = const_cast<float*>(dx.data) + r * dx.ld + c;
    if (dx.vectors && c + 4 <= dx.cols) {
      store(to, y);
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (c + j >= 0 && c + j < dx.cols) to[j] = y[j];
    }
  }
}

}  // namespace

void forward_f32(Stream& stream, Matrix u, ConstMatrix x, ConstMatrix a, const MaskOnDevice& mask) {
  const bool aligned = mask.skew == 0;
  const dim3 grid(blocks_for(x.rows, kN), 1, blocks_for(a.rows, kM));
  const Split split = split_sum(stream, u, x.cols + mask.skew, kDepth, int64_t{grid.x} * grid.z);
  if (stream.reserving()) return;
  LORASHARD_CUDA_CHECK(launch(lora_dropout_forward_f32, dim3(grid.x, unsigned(split.parts), grid.z),
                              dim3(kThreads), 0, stream_of(stream), Factor(x, aligned), mask,
                              Factor(a, aligned), split));
  add_parts(stream, u, split, false);
}

void wgrad_f32(Stream& stream, Matrix da, ConstMatrix t, ConstMatrix x, const MaskOnDevice& mask) {
  const dim3 grid(blocks_for(x.cols + mask.skew, kN), 1, blocks_for(t.cols, kM));
  const Split split = split_sum(stream, da, x.rows, kDepth, int64_t{grid.x} * grid.z);
  if (stream.reserving()) return;
  LORASHARD_CUDA_CHECK(launch(lora_dropout_wgrad_f32, dim3(grid.x, unsigned(split.parts), grid.z),
                              dim3(kThreads), 0, stream_of(stream), Factor(x, mask.skew == 0), mask,
                              Factor(t), split));
  add_parts(stream, da, split, true);
}

void dgrad_f32(Stream& stream, Matrix dx, ConstMatrix t, ConstMatrix a, const MaskOnDevice& mask) {
  const bool aligned = mask.skew == 0;
  // At most 65535 blocks of rows in a launch.
  constexpr int64_t kMostRows = int64_t{65535} * kM;
  for (int64_t first = 0; first < dx.rows; first += kMostRows) {
    const int64_t rows = std::min(kMostRows, dx.rows - first);
    MaskOnDevice here = mask;
    here.row_keys += first;
    const dim3 grid(blocks_for(dx.cols + mask.skew, kN), blocks_for(rows, kM));
    LORASHARD_CUDA_CHECK(launch(lora_dropout_dgrad_f32, grid, dim3(kThreads), 0, stream_of(stream),
                                Factor(dx.row_range(first, rows), aligned), here,
                                Factor(t.row_range(first, rows)), Factor(a, aligned)));
  }
}

}  // namespace lorashard::cuda
