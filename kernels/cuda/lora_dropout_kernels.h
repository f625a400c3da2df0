// What the kernels of LoRA's GEMMs with dropout share (kernels/lora_dropout.h): on tensor cores
// where x or dx is BF16 (lora_dropout.cu), in fp32 else (lora_dropout_f32.cu).
//
// Columns are those of the mask (MaskOnDevice): local column j is column skew + j, so that a thread
// that takes four or eight neighbouring columns from a multiple of four on draws whole groups of
// words. Where skew is not 0, and where pointers or leading dimensions forbid vectors, elements
// are read one by one.
#pragma once

#include <algorithm>

#include "kernels/cuda/check.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/dropout_mask.h"
#include "kernels/cuda/operands.h"
#include "kernels/lora_dropout.h"

namespace lorashard::cuda {

// A sum that is shared out over `parts` blocks, each of which takes `size` summands: a single part
// is added to y or written there, several are written to scratch and added up in order.
struct Split {
  int64_t parts, size;
  float* data;         // of the first part
  int64_t ld, stride;  // between its rows, and from part to part
};

// For y(M,N) as sums of `depth` summands, in parts of whole `unit`s, where each part takes `blocks`
// thread blocks: enough parts to fill the device.
Split split_sum(Stream& stream, Matrix y, int64_t depth, int64_t unit, int64_t blocks);
// y = (or += if accumulate) the sum of the parts, where there are several.
void add_parts(Stream& stream, Matrix y, const Split& split, bool accumulate);

// The fp32 kernels.
void forward_f32(Stream& stream, Matrix u, ConstMatrix x, ConstMatrix a, const MaskOnDevice& mask);
void wgrad_f32(Stream& stream, Matrix da, ConstMatrix t, ConstMatrix x, const MaskOnDevice& mask);
void dgrad_f32(Stream& stream, Matrix dx, ConstMatrix t, ConstMatrix a, const MaskOnDevice& mask);

// A matrix of F32 that a kernel reads in pieces of four columns.
struct Factor {
  explicit Factor(ConstMatrix m, bool aligned = true)
      : data(static_cast<const float*>(m.data)),
        ld(m.ld),
        rows(m.rows),
        cols(m.cols),
        vectors(aligned && vectors_fit(4, {m})) {}
  // Zero outside the matrix.
  __device__ __forceinline__ float at(int64_t row, int64_t col) const {
    return row < rows && col >= 0 && col < cols ? data[row * ld + col] : 0;
  }
  // Columns col to col + 3, a multiple of 4 where `vectors`.
  __device__ __forceinline__ Floats<4> four(int64_t row, int64_t col) const {
    if (vectors && row < rows && col + 4 <= cols) return load<4>(data + row * ld + col);
    return {{at(row, col), at(row, col + 1), at(row, col + 2), at(row, col + 3)}};
  }

  const float* data;
  int64_t ld, rows, cols;
  bool vectors;
};

inline unsigned blocks_for(int64_t n, int64_t each) { return unsigned((n + each - 1) / each); }

}  // namespace lorashard::cuda
