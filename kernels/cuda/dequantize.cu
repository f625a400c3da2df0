#include "kernels/dequantize.h"

#include "kernels/cuda/kernels.h"
#include "kernels/cuda/map_rows.h"

namespace lorashard::cuda {
namespace {

__device__ __forceinline__ float absmax_of(const Nf4Matrix& w, int64_t block) {
  if (w.absmax) return w.absmax[block];
  return w.absmax_levels[w.absmax_codes[block]] * w.absmax_scales[block / kNf4AbsmaxBlock] +
         w.absmax_offset;
}

constexpr int kNf4Columns = 8;  // four bytes of codes, which never cross a block of 64

struct Nf4Levels {
  float level[16];
};

// The levels lie in shared memory, where 16 neighbouring words answer any 16 codes at once.
template <class T>
__global__ void __launch_bounds__(kMapThreads)
    dequantize_nf4_kernel(Output<T> y, const Nf4Matrix w, const Nf4Levels levels, int64_t vectors) {
  SHARED_ARRAY(float, level, 16);
  const unsigned t = threadIdx.y * blockDim.x + threadIdx.x;
  if (t < 16) level[t] = levels.level[t];
  __syncthreads();
  const int64_t x = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int64_t across = int64_t{gridDim.x} * blockDim.x;
  const int64_t down = int64_t{gridDim.y} * blockDim.y;
#pragma unroll 1
  for (int64_t i = int64_t{blockIdx.y} * blockDim.y + threadIdx.y; i < w.rows; i += down) {
    const int64_t row = w.first + i * w.ld;
#pragma unroll 1
    for (int64_t u = x; u < vectors; u += across) {
      const int64_t e = row + u * kNf4Columns;
      const float absmax = absmax_of(w, e / kNf4Block);
      const auto bytes = *reinterpret_cast<const Pack<uint8_t, kNf4Columns / 2>*>(w.codes + e / 2);
      Floats<kNf4Columns> v;
#pragma unroll
      for (int k = 0; k < kNf4Columns / 2; ++k) {
        v[2 * k] = level[bytes.e[k] >> 4] * absmax;
        v[2 * k + 1] = level[bytes.e[k] & 15] * absmax;
      }
      y.template set<kNf4Columns>(i, u * kNf4Columns, v);
    }
#pragma unroll 1
    for (int64_t c = vectors * kNf4Columns + x; c < w.cols; c += across) {
      const int64_t e = row + c;
      const unsigned pair = w.codes[e / 2];
      y.template set<1>(i, c, {level[e % 2 ? pair & 15 : pair >> 4] * absmax_of(w, e / kNf4Block)});
    }
  }
}

template <class T>
struct Int8 {
  static constexpr int kColumns = kVector<T>;
  Output<T> y;
  const int8_t* codes;
  int64_t ld;
  const float* scales;
  template <int V>
  __device__ void run(int64_t row, int64_t col) const {
    const auto pack = *reinterpret_cast<const Pack<int8_t, V>*>(codes + row * ld + col);
    const float scale = scales[row];
    Floats<V> v;
#pragma unroll
    for (int i = 0; i < V; ++i) v[i] = float(pack.e[i]) * scale;
    y.template set<V>(row, col, v);
  }
};

}  // namespace

void dequantize_nf4(Stream& stream, Matrix y, const Nf4Matrix& w) {
  if (y.rows == 0 || y.cols == 0) return;
  const ConstMatrix bytes{w.codes + w.first / 2, w.rows, w.cols / 2, w.ld / 2, DType::U8};
  const bool fits = w.first % kNf4Columns == 0 && (w.rows == 1 || w.ld % kNf4Columns == 0) &&
                    vectors_fit(kNf4Columns / 2, {bytes}) && vectors_fit(kNf4Columns, {y});
  const MapGrid g = map_grid(y.rows, y.cols, kNf4Columns, fits);
  Nf4Levels levels;
  std::copy(std::begin(kNf4Levels), std::end(kNf4Levels), levels.level);
  with_storage_type(y.dtype, [&]<class T>() {
    LORASHARD_CUDA_CHECK(launch(dequantize_nf4_kernel<T>, g.grid, g.block, 0, stream_of(stream),
                                Output<T>(y), w, levels, g.vectors));
  });
}

void dequantize_int8(Stream& stream, Matrix y, ConstMatrix codes, const float* scales) {
  with_storage_type(y.dtype, [&]<class T>() {
    using Op = Int8<T>;
    map(stream, Op{Output<T>(y), static_cast<const int8_t*>(codes.data), codes.ld, scales}, y.rows,
        y.cols, vectors_fit(Op::kColumns, {y, codes}));
  });
}

}  // namespace lorashard::cuda
