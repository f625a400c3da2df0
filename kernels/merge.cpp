#include "kernels/merge.h"

#include <omp.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "kernels/cpu/table.h"

// One version of a loop for each vector width; the loader takes the widest that the processor has.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define LORASHARD_VECTOR_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define LORASHARD_VECTOR_CLONES
#endif

namespace lorashard {
namespace {

constexpr int64_t kChunk = 512;  // columns: the sums stay in the first-level cache

// y(N) += c(R) a(R,N), rows of a `lda` apart. Four rows at a time, so that y moves once for four.
LORASHARD_VECTOR_CLONES
void add_rows(float* __restrict y, const float* __restrict a, int64_t lda, const float* c,
              int64_t lora_rank, int64_t n) {
  int64_t k = 0;
  for (; k + 4 <= lora_rank; k += 4) {
    const float *a0 = a + k * lda, *a1 = a0 + lda, *a2 = a1 + lda, *a3 = a2 + lda;
    const float c0 = c[k], c1 = c[k + 1], c2 = c[k + 2], c3 = c[k + 3];
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) y[i] += c0 * a0[i] + c1 * a1[i] + c2 * a2[i] + c3 * a3[i];
  }
  for (; k < lora_rank; ++k) {
    const float *a0 = a + k * lda, c0 = c[k];
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) y[i] += c0 * a0[i];
  }
}

// The magnitudes of floats order as their bits without the sign do, NaN last.
LORASHARD_VECTOR_CLONES
void largest(const float* sum, const float* stored, int64_t n, uint32_t& error,
             uint32_t& magnitude) {
  uint32_t e = error, m = magnitude;
#pragma omp simd reduction(max : e, m)
  for (int64_t i = 0; i < n; ++i) {
    e = std::max(e, std::bit_cast<uint32_t>(stored[i] - sum[i]) & 0x7fffffffu);
    m = std::max(m, std::bit_cast<uint32_t>(sum[i]) & 0x7fffffffu);
  }
  error = e;
  magnitude = m;
}

}  // namespace

RoundingError merge_rows(Matrix y, ConstMatrix w, const float* a, const float* b, int64_t lora_rank,
                         float scale, const float* magnitudes) {
  const CpuKernels& cpu = cpu_kernels();
  uint32_t error = 0, magnitude = 0;
  std::vector<float> factors(size_t(magnitudes ? w.rows : 0));  // of each row
  // One processor is left to the thread that writes the block before; a few outrun any disk.
  const int threads = std::clamp(omp_get_max_threads() - 1, 1, 8);
#pragma omp parallel num_threads(threads) reduction(max : error, magnitude)
  {
    alignas(64) float sum[kChunk], stored[kChunk];
    float c[256];
    // sum(n) = columns j to j + n of row i.
    const auto form = [&](int64_t i, int64_t j, int64_t n) {
      cpu.convert(sum, DType::F32, w.at(i, j), w.dtype, n);
      for (int64_t k = 0; k < lora_rank; k += 256) {
        const int64_t r = std::min<int64_t>(256, lora_rank - k);
        for (int64_t l = 0; l < r; ++l) c[l] = scale * b[i * lora_rank + k + l];
        add_rows(sum, a + k * w.cols + j, w.cols, c, r, n);
      }
    };
#pragma omp for schedule(static)
    for (int64_t i = 0; i < int64_t(factors.size()); ++i) {
      double squares = 0;
      for (int64_t j = 0; j < w.cols; j += kChunk) {
        const int64_t n = std::min(kChunk, w.cols - j);
        form(i, j, n);
        for (int64_t k = 0; k < n; ++k) squares += double(sum[k]) * double(sum[k]);
      }
      factors[size_t(i)] = float(double(magnitudes[i]) / std::sqrt(squares));
    }
#pragma omp for schedule(static) collapse(2)
    for (int64_t j = 0; j < w.cols; j += kChunk) {
      for (int64_t i = 0; i < w.rows; ++i) {
        const int64_t n = std::min(kChunk, w.cols - j);
        form(i, j, n);
        if (magnitudes) cpu.scale(sum, DType::F32, sum, DType::F32, factors[size_t(i)], n);
        cpu.convert(y.at(i, j), y.dtype, sum, DType::F32, n);
        cpu.convert(stored, DType::F32, y.at(i, j), y.dtype, n);
        largest(sum, stored, n, error, magnitude);
      }
    }
  }
  return {std::bit_cast<float>(error), std::bit_cast<float>(magnitude)};
}

}  // namespace lorashard
