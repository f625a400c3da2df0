#include "kernels/dequantize.h"

#include <algorithm>
#include <cassert>

#include "kernels/cuda/dispatch.h"
#include "kernels/float_types.h"
#include "kernels/parallel_for.h"
#include "kernels/profile.h"

namespace lorashard {
namespace {

int64_t rows_worth_a_thread(int64_t cols) { return 16384 / std::max<int64_t>(cols, 1) + 1; }

float absmax_of(const Nf4Matrix& w, int64_t block) {
  if (w.absmax) return w.absmax[block];
  return w.absmax_levels[w.absmax_codes[block]] * w.absmax_scales[block / kNf4AbsmaxBlock] +
         w.absmax_offset;
}

}  // namespace

void dequantize_nf4(Stream& stream, Matrix y, const Nf4Matrix& w) {
  if (stream.record("dequantize_nf4", {traffic(y) + double(w.rows * w.cols) / 2})) return;
  LORASHARD_RETURN_ON_CUDA(stream, dequantize_nf4(stream, y, w));
  const ProfileSpan span("kernel", "dequantize_nf4");
  assert(y.rows == w.rows && y.cols == w.cols);
  parallel_for(stream, y.rows, rows_worth_a_thread(y.cols), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      // Piece by piece, as far as one maximum reaches.
      for (int64_t j = 0; j < y.cols;) {
        const int64_t e = w.first + i * w.ld + j, block = e / kNf4Block;
        const int64_t stop = std::min(y.cols, j + (block + 1) * kNf4Block - e);
        float values[16];
        for (int k = 0; k < 16; ++k) values[k] = kNf4Levels[k] * absmax_of(w, block);
        for (int64_t k = e; j < stop; ++j, ++k) {
          const uint8_t pair = w.codes[k / 2];
          store_scalar(y.at(i, 0), y.dtype, j, values[k % 2 ? pair & 15 : pair >> 4]);
        }
      }
    }
  });
}

void dequantize_int8(Stream& stream, Matrix y, ConstMatrix codes, const float* scales) {
  if (stream.record("dequantize_int8", {traffic(y, codes)})) return;
  LORASHARD_RETURN_ON_CUDA(stream, dequantize_int8(stream, y, codes, scales));
  const ProfileSpan span("kernel", "dequantize_int8");
  assert(y.rows == codes.rows && y.cols == codes.cols && codes.dtype == DType::I8);
  parallel_for(stream, y.rows, rows_worth_a_thread(y.cols), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto* row = reinterpret_cast<const int8_t*>(codes.at(i, 0));
      for (int64_t j = 0; j < y.cols; ++j)
        store_scalar(y.at(i, 0), y.dtype, j, float(row[j]) * scales[i]);
    }
  });
}

}  // namespace lorashard
