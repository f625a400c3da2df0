#include "kernels/dora.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <cmath>

#include "kernels/cpu/table.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/parallel_for.h"
#include "kernels/profile.h"

namespace lorashard {
namespace {

const float* floats(const ConstMatrix& m) {
  assert(m.dtype == DType::F32);
  return static_cast<const float*>(m.data);
}
float* floats(const Matrix& m) {
  assert(m.dtype == DType::F32);
  return static_cast<float*>(m.data);
}

}  // namespace

void row_squares(Stream& stream, Matrix squares, ConstMatrix w) {
  if (stream.record("row_squares", {traffic(squares, w)})) return;
  LORASHARD_RETURN_ON_CUDA(stream, row_squares(stream, squares, w));
  const ProfileSpan span("kernel", "row_squares");
  const CpuKernels& cpu = cpu_kernels();
  assert(squares.rows == 1 && squares.cols == w.rows);
  float* to = floats(squares);
  parallel_for(stream, w.rows, 1, [&](int64_t begin, int64_t end) {
    std::array<float, 256> x;
    for (int64_t n = begin; n < end; ++n) {
      double sum = 0;
      for (int64_t first = 0; first < w.cols; first += int64_t(x.size())) {
        const int64_t count = std::min(int64_t(x.size()), w.cols - first);
        cpu.convert(x.data(), DType::F32, w.at(n, first), w.dtype, count);
        for (int64_t k = 0; k < count; ++k) sum += double(x[size_t(k)]) * double(x[size_t(k)]);
      }
      to[n] = float(sum);
    }
  });
}

void dora_squares(Stream& stream, Matrix squares, ConstMatrix base, ConstMatrix p, ConstMatrix b,
                  ConstMatrix gram, float scaling) {
  if (stream.record("dora_squares", {traffic(squares, base, p, b, gram)})) return;
  LORASHARD_RETURN_ON_CUDA(stream, dora_squares(stream, squares, base, p, b, gram, scaling));
  const ProfileSpan span("kernel", "dora_squares");
  assert(p.rows == b.cols && p.cols == b.rows && gram.rows == b.cols && gram.cols == b.cols);
  const float *base_of = floats(base), *p_of = floats(p), *b_of = floats(b), *g_of = floats(gram);
  float* to = floats(squares);
  const int64_t rank = b.cols;
  parallel_for(stream, b.rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const float* row = b_of + n * b.ld;
      double sum = base_of[n];
      for (int64_t i = 0; i < rank; ++i) {
        double inner = 0;
        for (int64_t k = 0; k < rank; ++k) inner += double(g_of[i * gram.ld + k]) * double(row[k]);
        sum += double(scaling) * double(row[i]) *
               (2 * double(p_of[i * p.ld + n]) + double(scaling) * inner);
      }
      to[n] = float(sum);
    }
  });
}

void dora_scales(Stream& stream, Matrix scale, Matrix excess, Matrix inverse_norm,
                 ConstMatrix squares, ConstMatrix magnitude) {
  if (stream.record("dora_scales", {traffic(scale, excess, inverse_norm, squares, magnitude)}))
    return;
  LORASHARD_RETURN_ON_CUDA(stream,
                           dora_scales(stream, scale, excess, inverse_norm, squares, magnitude));
  const ProfileSpan span("kernel", "dora_scales");
  const float *square = floats(squares), *m = floats(magnitude);
  float *s = floats(scale), *e = floats(excess), *inverse = floats(inverse_norm);
  for (int64_t n = 0; n < scale.cols; ++n) {
    inverse[n] = 1 / std::sqrt(square[n]);
    s[n] = m[n] * inverse[n];
    e[n] = s[n] - 1;
  }
}

}  // namespace lorashard
