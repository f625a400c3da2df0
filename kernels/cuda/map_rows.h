// Elementwise kernels over matrices: one template that each instantiates with its operation.
//
// An operation is a small struct, passed by value, with
//   static constexpr int kColumns;                                the columns of a vector access
//   template <int V> __device__ void run(int64_t row, int64_t col) const;     V: kColumns or 1
// Every element is handled by one thread, so outputs may alias inputs of the same type.
#pragma once

#include <algorithm>

#include "kernels/cuda/check.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/operands.h"

namespace lorashard::cuda {

inline constexpr int kMapThreads = 256;

// One thread a vector: these kernels do little arithmetic, and a full device of single 16-byte
// accesses keeps the memory busy. Blocks cover 2^k vectors of a row times 256 / 2^k rows, so that
// narrow matrices fill them too. Strides serve only what exceeds the largest grid: unrolling them
// would only cost registers.
template <class Op>
__global__ void __launch_bounds__(kMapThreads)
    map_rows(Op op, int64_t rows, int64_t cols, int64_t vectors) {
  const int64_t x = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int64_t across = int64_t{gridDim.x} * blockDim.x;
  const int64_t down = int64_t{gridDim.y} * blockDim.y;
#pragma unroll 1
  for (int64_t r = int64_t{blockIdx.y} * blockDim.y + threadIdx.y; r < rows; r += down) {
#pragma unroll 1
    for (int64_t u = x; u < vectors; u += across)
      op.template run<Op::kColumns>(r, u * Op::kColumns);
#pragma unroll 1
    for (int64_t c = vectors * Op::kColumns + x; c < cols; c += across) op.template run<1>(r, c);
  }
}

// The widest block, in vectors of one row, that leaves few threads idle.
inline int64_t block_width(int64_t units) {
  int64_t best = 1;
  double best_use = 0;
  for (int64_t width = kMapThreads; width >= 1; width /= 2) {
    const double use = double(units) / double((units + width - 1) / width * width);
    if (use > best_use + 0.1) best = width, best_use = use;
  }
  return best;
}

// How map_rows() and kernels like it share out (rows, cols): threads along x take vectors of
// `columns` columns and then the columns left over, threads along y take rows.
struct MapGrid {
  dim3 grid, block;
  int64_t vectors;  // in a row; 0 unless aligned
};

inline MapGrid map_grid(int64_t rows, int64_t cols, int64_t columns, bool aligned) {
  const int64_t vectors = aligned ? cols / columns : 0;
  const int64_t units = std::max(vectors, cols - vectors * columns);
  const int64_t width = block_width(units), height = kMapThreads / width;
  const int64_t across = std::min<int64_t>((units + width - 1) / width, INT32_MAX);
  const int64_t down = std::min<int64_t>((rows + height - 1) / height, 65535);
  return {dim3(unsigned(across), unsigned(down)), dim3(unsigned(width), unsigned(height)), vectors};
}

// Runs op over (rows, cols); aligned: the vector accesses of whole rows are allowed
// (vectors_fit()). Otherwise, and in the last columns, elements are handled one by one.
template <class Op>
void map(Stream& stream, const Op& op, int64_t rows, int64_t cols, bool aligned) {
  if (rows == 0 || cols == 0) return;
  const MapGrid g = map_grid(rows, cols, Op::kColumns, aligned);
  LORASHARD_CUDA_CHECK(
      launch(map_rows<Op>, g.grid, g.block, 0, stream_of(stream), op, rows, cols, g.vectors));
}

// Makes one row of matrices of the same shape whose rows follow each other without gaps.
template <class... M>
void join_rows(M&... matrices) {
  if (!((!matrices || matrices.ld == matrices.cols) && ...)) return;
  ((matrices.cols *= matrices.rows, matrices.ld = matrices.cols, matrices.rows = 1), ...);
}

}  // namespace lorashard::cuda
