#include "kernels/lora_dropout.h"

#include "kernels/cuda/kernels.h"
#include "kernels/cuda/lora_dropout_kernels.h"
#include "kernels/cuda/map_rows.h"
#include "kernels/cuda/mma.h"

namespace lorashard::cuda {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32;
// Blocks a multiprocessor should have, so that warps hide each other's loads.
constexpr int64_t kBlocksPerMultiprocessor = 4;

// The fragments of mma.h pair up slots of both operands, and which column (or row) stands in a
// slot is free as long as both agree. So lane (g, t) takes eight (or four) neighbouring columns of
// x, a whole vector with whole groups of random words, and no element passes through shared memory.

// C neighbouring bf16 of a row, two to a word.
template <int C>
struct Columns {
  uint32_t w[C / 2];
};

template <int C>
__device__ __forceinline__ Columns<C> load_columns(const bf16* row, int64_t col, int64_t cols,
                                                   bool vectors) {
  Columns<C> v;
  if (vectors && col + C <= cols) {
    const auto pack = *reinterpret_cast<const Pack<uint32_t, C / 2>*>(row + col);
#pragma unroll
    for (int i = 0; i < C / 2; ++i) v.w[i] = pack.e[i];
    return v;
  }
  const auto* bits = reinterpret_cast<const uint16_t*>(row);
#pragma unroll
  for (int i = 0; i < C / 2; ++i) {
    const int64_t c = col + 2 * i;
    const uint32_t low = c >= 0 && c < cols ? bits[c] : 0;
    const uint32_t high = c + 1 >= 0 && c + 1 < cols ? bits[c + 1] : 0;
    v.w[i] = low | high << 16;
  }
  return v;
}

// Zeroes what the mask drops of columns `col` on, in the row of this key.
template <int C>
__device__ __forceinline__ void drop(Columns<C>& v, const MaskOnDevice& mask, uint64_t key,
                                     int64_t col) {
#pragma unroll
  for (int i = 0; i < C / 4; ++i) {
    const Words words = mask.words(key, uint64_t(col) / 4 + unsigned(i));
#pragma unroll
    for (int j = 0; j < 2; ++j)
      v.w[2 * i + j] &= (mask.keeps(words.w[2 * j]) ? 0x0000ffffu : 0) |
                        (mask.keeps(words.w[2 * j + 1]) ? 0xffff0000u : 0);
  }
}

// bf16 rows of x under their mask.
struct MaskedRows {
  MaskedRows(ConstMatrix x, const MaskOnDevice& m)
      : data(static_cast<const bf16*>(x.data)),
        ld(x.ld),
        rows(x.rows),
        cols(x.cols),
        vectors(m.skew == 0 && vectors_fit(8, {x})),
        mask(m) {}
  __device__ __forceinline__ uint64_t key(int64_t row) const {
    return mask.row_keys[row < rows ? row : rows - 1];
  }
  // Columns col to col + C - 1 as they stand in memory; zero outside the matrix.
  template <int C>
  __device__ __forceinline__ Columns<C> load(int64_t row, int64_t col) const {
    return load_columns<C>(data + row * ld, col - mask.skew, row < rows ? cols : 0, vectors);
  }
  __host__ __device__ int64_t end() const { return cols + mask.skew; }

  const bf16* data;
  int64_t ld, rows, cols;
  bool vectors;
  MaskOnDevice mask;
};

// ---- u = dropout(x) A^T

constexpr int kForwardDepth = 32;

// R: fragments of sixteen rows; N: eight columns of u each. A warp sums its rows over the columns
// of its part.
template <int R, int N>
__global__ void __launch_bounds__(kThreads)
    lora_dropout_forward(MaskedRows x, Factor a, Split out) {
  const int lane = int(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const int64_t row = (int64_t{blockIdx.x} * kWarps + threadIdx.x / 32) * 16 * R + g;
  const int first_rank = int(blockIdx.z) * 8 * N;
  const int64_t begin = int64_t{blockIdx.y} * out.size;
  const int64_t end = min(x.end(), begin + out.size);
  if (row - g >= x.rows) return;
  uint64_t keys[2 * R];
#pragma unroll
  for (int i = 0; i < 2 * R; ++i) keys[i] = x.key(row + 8 * i);
  FragmentC sum[R][N] = {};
  Columns<8> next[2 * R];
#pragma unroll
  for (int i = 0; i < 2 * R; ++i) next[i] = x.load<8>(row + 8 * i, begin + 8 * t);
#pragma unroll 1
  for (int64_t c = begin + 8 * t; c - 8 * t < end; c += kForwardDepth) {
    Columns<8> v[2 * R];
#pragma unroll
    for (int i = 0; i < 2 * R; ++i) {
      v[i] = next[i];
      next[i] = x.load<8>(row + 8 * i, c + kForwardDepth);
    }
#pragma unroll
    for (int i = 0; i < 2 * R; ++i) drop(v[i], x.mask, keys[i], c);
#pragma unroll
    for (int s = 0; s < 2; ++s)
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const Floats<4> f = a.four(first_rank + 8 * j + g, c + 4 * s - x.mask.skew);
        const FragmentB b{{pack(f[0], f[1]), pack(f[2], f[3])}};
#pragma unroll
        for (int i = 0; i < R; ++i) {
          const Columns<8>&upper = v[2 * i], &lower = v[2 * i + 1];
          const FragmentA kept{
              {upper.w[2 * s], lower.w[2 * s], upper.w[2 * s + 1], lower.w[2 * s + 1]}};
          mma(sum[i][j], kept, b);
        }
      }
  }
  float* part = out.data + blockIdx.y * out.stride;
#pragma unroll
  for (int h = 0; h < 2 * R; ++h) {
    if (row + 8 * h >= x.rows) continue;
#pragma unroll
    for (int j = 0; j < N; ++j)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int rank = first_rank + 8 * j + 2 * t + i;
        if (rank < a.rows)
          part[(row + 8 * h) * out.ld + rank] = x.mask.factor * sum[h / 2][j].x[h % 2 * 2 + i];
      }
  }
}

// ---- dA += t^T dropout(x)

constexpr int64_t kWgradRows = 16;

// M: sixteen rows of da each; C: columns of a lane, 8 C of a warp. A warp sums its columns over the
// rows of its part.
template <int M, int C>
__global__ void __launch_bounds__(kThreads)
    lora_dropout_wgrad(MaskedRows x, Factor t_rows, Split out) {
  const int lane = int(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const int64_t first_col = (int64_t{blockIdx.x} * kWarps + threadIdx.x / 32) * 8 * C;
  const int first_rank = int(blockIdx.z) * 16 * M;
  const int64_t begin = int64_t{blockIdx.y} * out.size;
  const int64_t end = min(x.rows, begin + out.size);
  if (first_col >= x.end()) return;
  const int64_t col = first_col + C * g;
  FragmentC sum[M][C] = {};
#pragma unroll 1
  for (int64_t row = begin + 4 * t; row - 4 * t < end; row += kWgradRows) {
    Columns<C> v[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = x.load<C>(row + i, col);
    FragmentA a[M];
#pragma unroll
    for (int m = 0; m < M; ++m) {
      float f[2][4];
#pragma unroll
      for (int i = 0; i < 8; ++i)
        f[i / 4][i % 4] = t_rows.at(row + i % 4, first_rank + 16 * m + g + i / 4 * 8);
      a[m] = {{pack(f[0][0], f[0][1]), pack(f[1][0], f[1][1]), pack(f[0][2], f[0][3]),
               pack(f[1][2], f[1][3])}};
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) drop(v[i], x.mask, x.key(row + i), col);
      // Rows of one column side by side.
#pragma unroll
    for (int j = 0; j < C; ++j) {
      FragmentB b;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t first = v[2 * i].w[j / 2], second = v[2 * i + 1].w[j / 2];
        b.x[i] =
            j % 2 == 0 ? (first & 0xffffu) | second << 16 : first >> 16 | (second & 0xffff0000u);
      }
#pragma unroll
      for (int m = 0; m < M; ++m) mma(sum[m][j], a[m], b);
    }
  }
  // A lane has columns 2 C t to 2 C (t + 1) - 1 of its warp's.
  float* part = out.data + blockIdx.y * out.stride;
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int rank = first_rank + 16 * m + g + 8 * h;
      if (rank >= t_rows.cols) continue;
#pragma unroll
      for (int i = 0; i < 2 * C; ++i) {
        const int64_t c = first_col + 2 * C * t + i - x.mask.skew;
        if (c < 0 || c >= x.cols) continue;
        float& y = part[rank * out.ld + c];
        const float value = x.mask.factor * sum[m][i % C].x[2 * h + i / C];
        y = out.parts == 1 ? y + value : value;
      }
    }
}

// ---- dx += mask (t A)

constexpr int kDgradColumns = 64, kDgradRows = 16;
constexpr int kMostRanks = 256;  // what one launch multiplies
constexpr int kPairs = 8 * 32;   // fragments of A for sixteen rows: eight tiles of eight columns

// A block keeps its columns of A, as fragments, and takes the rows from its place on in steps.
__global__ void __launch_bounds__(kThreads)
    lora_dropout_dgrad(MaskedRows dx, Factor t_rows, Factor a, int first_rank) {
  FragmentB* fragments = dyn_shared<FragmentB>();  // [steps][8][32]
  const int steps = min(kMostRanks, int(a.rows) - first_rank + 15) / 16;
  const int64_t first_col = int64_t{blockIdx.x} * kDgradColumns;
#pragma unroll 1
  for (int i = int(threadIdx.x); i < steps * kPairs; i += kThreads) {
    const int g = i % 32 / 4, t = i % 4, tile = i / 32 % 8;
    const int64_t rank = first_rank + i / kPairs * 16 + 4 * t;
    const int64_t c = first_col + 32 * (tile / 4) + 8 * (g / 2) + 2 * (tile % 4) + g % 2;
    const int64_t local = c - dx.mask.skew;
    fragments[i] = {{pack(a.at(rank, local), a.at(rank + 1, local)),
                     pack(a.at(rank + 2, local), a.at(rank + 3, local))}};
  }
  __syncthreads();
  const int lane = int(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const int64_t down = int64_t{gridDim.y} * kWarps * kDgradRows;
#pragma unroll 1
  for (int64_t row = (int64_t{blockIdx.y} * kWarps + threadIdx.x / 32) * kDgradRows + g;
       row - g < dx.rows; row += down) {
    Columns<8> v[2][2];  // of rows row and row + 8, from columns 8 t and 32 + 8 t on
#pragma unroll
    for (int i = 0; i < 4; ++i)
      v[i / 2][i % 2] = dx.load<8>(row + i / 2 * 8, first_col + i % 2 * 32 + 8 * t);
    FragmentC sum[8] = {};
#pragma unroll 1
    for (int s = 0; s < steps; ++s) {
      const Floats<4> upper = t_rows.four(row, first_rank + 16 * s + 4 * t);
      const Floats<4> lower = t_rows.four(row + 8, first_rank + 16 * s + 4 * t);
      const FragmentA f{{pack(upper[0], upper[1]), pack(lower[0], lower[1]),
                         pack(upper[2], upper[3]), pack(lower[2], lower[3])}};
#pragma unroll
      for (int j = 0; j < 8; ++j) mma(sum[j], f, fragments[s * kPairs + j * 32 + lane]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t r = row + i / 2 * 8, col = first_col + i % 2 * 32 + 8 * t;
      const int64_t local = col - dx.mask.skew;
      if (r >= dx.rows || local >= dx.cols) continue;
      const uint64_t key = dx.key(r);
      Columns<8> y = v[i / 2][i % 2];
#pragma unroll
      for (int q = 0; q < 2; ++q) {
        const Words words = dx.mask.words(key, uint64_t(col) / 4 + unsigned(q));
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const FragmentC& product = sum[i % 2 * 4 + 2 * q + j];
          uint32_t& pair = y.w[2 * q + j];
          const float low = dx.mask.apply(words.w[2 * j], product.x[i / 2 * 2]);
          const float high = dx.mask.apply(words.w[2 * j + 1], product.x[i / 2 * 2 + 1]);
          pair =
              pack(__uint_as_float(pair << 16) + low, __uint_as_float(pair & 0xffff0000u) + high);
        }
      }
      auto* to = const_cast<bf16*>(dx.data) + r * dx.ld + local;
      if (dx.vectors && local + 8 <= dx.cols) {
        Pack<uint32_t, 4> pack4;
#pragma unroll
        for (int w = 0; w < 4; ++w) pack4.e[w] = y.w[w];
        *reinterpret_cast<Pack<uint32_t, 4>*>(to) = pack4;
      } else {
#pragma unroll
        for (int w = 0; w < 8; ++w)
          if (local + w >= 0 && local + w < dx.cols)
            reinterpret_cast<uint16_t*>(to)[w] = uint16_t(y.w[w / 2] >> w % 2 * 16);
      }
    }
  }
}

// y as the sum of its parts, one after the other.
struct AddParts {
  static constexpr int kColumns = 4;
  Output<float> y;
  Input<float> first;
  int64_t parts, stride;
  bool accumulate;
  template <int V>
  __device__ void run(int64_t row, int64_t col) const {
    Floats<V> sum{};
    if (accumulate) sum = y.template at<V>(row, col);
    const float* part = first.data + row * first.ld + col;
#pragma unroll 2
    for (int64_t p = 0; p < parts; ++p, part += stride) {
      const Floats<V> x = load<V>(part);
#pragma unroll
      for (int i = 0; i < V; ++i) sum[i] += x[i];
    }
    y.template set<V>(row, col, sum);
  }
};

int64_t multiprocessors(Stream& stream) { return std::max(stream.cuda()->multiprocessors, 1); }

void forward_bf16(Stream& stream, Matrix u, ConstMatrix x, ConstMatrix a,
                  const MaskOnDevice& mask) {
  const MaskedRows rows(x, mask);
  const Factor factor(a, mask.skew == 0);
  const auto run = [&]<int R, int N>() {
    const dim3 grid(blocks_for(x.rows, 16 * R * kWarps), 1, blocks_for(a.rows, 8 * N));
    const Split split = split_sum(stream, u, rows.end(), kForwardDepth, int64_t{grid.x} * grid.z);
    if (stream.reserving()) return;
    LORASHARD_CUDA_CHECK(launch(lora_dropout_forward<R, N>,
                                dim3(grid.x, unsigned(split.parts), grid.z), dim3(kThreads), 0,
                                stream_of(stream), rows, factor, split));
    add_parts(stream, u, split, false);
  };
  if (a.rows <= 8)
    run.template operator()<2, 1>();
  else if (a.rows <= 16)
    run.template operator()<2, 2>();
  else if (a.rows <= 32)
    run.template operator()<2, 4>();
  else
    run.template operator()<1, 8>();
}

void wgrad_bf16(Stream& stream, Matrix da, ConstMatrix t, ConstMatrix x, const MaskOnDevice& mask) {
  const MaskedRows rows(x, mask);
  const auto run = [&]<int M, int C>() {
    const dim3 grid(blocks_for(rows.end(), 8 * C * kWarps), 1, blocks_for(t.cols, 16 * M));
    const Split split = split_sum(stream, da, x.rows, kWgradRows, int64_t{grid.x} * grid.z);
    if (stream.reserving()) return;
    LORASHARD_CUDA_CHECK(launch(lora_dropout_wgrad<M, C>,
                                dim3(grid.x, unsigned(split.parts), grid.z), dim3(kThreads), 0,
                                stream_of(stream), rows, Factor(t), split));
    add_parts(stream, da, split, true);
  };
  if (t.cols <= 16)
    run.template operator()<1, 8>();
  else if (t.cols <= 32)
    run.template operator()<2, 8>();
  else
    run.template operator()<4, 4>();
}

void dgrad_bf16(Stream& stream, Matrix dx, ConstMatrix t, ConstMatrix a, const MaskOnDevice& mask) {
  const MaskedRows rows(dx, mask);
  const unsigned across = blocks_for(rows.end(), kDgradColumns);
  const int64_t down =
      std::min<int64_t>(blocks_for(dx.rows, kDgradRows * kWarps),
                        2 * kBlocksPerMultiprocessor * multiprocessors(stream) / across + 1);
  for (int64_t first = 0; first < a.rows; first += kMostRanks) {
    const int64_t steps = blocks_for(std::min<int64_t>(a.rows - first, kMostRanks), 16);
    LORASHARD_CUDA_CHECK(launch(lora_dropout_dgrad, dim3(across, unsigned(down)), dim3(kThreads),
                                size_t(steps) * kPairs * sizeof(FragmentB), stream_of(stream), rows,
                                Factor(t), Factor(a), int(first)));
  }
}

}  // namespace

Split split_sum(Stream& stream, Matrix y, int64_t depth, int64_t unit, int64_t blocks) {
  // No part may be so short that writing it costs more than summing it.
  constexpr int64_t kFewestUnits = 4;
  const int64_t units = (depth + unit - 1) / unit;
  const int64_t wanted = (kBlocksPerMultiprocessor * multiprocessors(stream) + blocks - 1) / blocks;
  const int64_t most = std::max<int64_t>(units / kFewestUnits, 1);
  const int64_t each = (units + std::min(wanted, most) - 1) / std::min(wanted, most);
  // A mask that begins elsewhere may add a unit, never more parts than these.
  const int64_t parts = stream.reserving()
                            ? std::min(wanted, std::max<int64_t>((units + 1) / kFewestUnits, 1))
                            : (units + each - 1) / each;
  Split split{parts, each * unit, static_cast<float*>(y.data), y.ld, 0};
  if (split.parts == 1) return split;
  split.ld = y.cols;
  split.stride = y.rows * y.cols;
  split.data = static_cast<float*>(
      stream.scratch(ScratchSlot::LoraDropout, size_t(split.parts * split.stride) * sizeof(float)));
  return split;
}

void add_parts(Stream& stream, Matrix y, const Split& split, bool accumulate) {
  if (split.parts == 1) return;
  const ConstMatrix first{split.data, y.rows, y.cols, split.ld, DType::F32};
  const bool aligned = vectors_fit(4, {y, first}) && split.stride % 4 == 0;
  map(stream,
      AddParts{Output<float>(y), Input<float>(first), split.parts, split.stride, accumulate},
      y.rows, y.cols, aligned);
}

void lora_dropout_forward(Stream& stream, Matrix u, ConstMatrix x, ConstMatrix a,
                          const DropoutMask& mask) {
  if (x.rows == 0 || a.rows == 0) return;
  if (x.cols == 0) {
    if (!stream.reserving()) fill_zero(stream, u);
    return;
  }
  (x.dtype == DType::BF16 ? forward_bf16 : forward_f32)(stream, u, x, a, MaskOnDevice(mask));
}

void lora_dropout_wgrad(Stream& stream, Matrix da, ConstMatrix t, ConstMatrix x,
                        const DropoutMask& mask) {
  if (x.rows == 0 || x.cols == 0 || t.cols == 0) return;
  (x.dtype == DType::BF16 ? wgrad_bf16 : wgrad_f32)(stream, da, t, x, MaskOnDevice(mask));
}

void lora_dropout_dgrad(Stream& stream, Matrix dx, ConstMatrix t, ConstMatrix a,
                        const DropoutMask& mask) {
  if (dx.rows == 0 || dx.cols == 0 || a.rows == 0) return;
  (dx.dtype == DType::BF16 ? dgrad_bf16 : dgrad_f32)(stream, dx, t, a, MaskOnDevice(mask));
}

}  // namespace lorashard::cuda
