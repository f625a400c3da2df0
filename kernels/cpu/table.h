// The innermost loops of the CPU backend, compiled once per instruction set and chosen at run
// time. The kernels above them check nothing, split the work over threads and call these with
// rows or blocks. `n` counts elements; pointers with a DType hold F32 or BF16, and F16 too where it
// says so.
#pragma once

#include <cstdint>

#include "kernels/activation.h"
#include "kernels/adamw.h"
#include "kernels/tensor.h"

namespace lorashard {

struct AttentionTask;

struct CpuKernels {
  const char* name;  // "baseline", "avx2" or "avx512"
  int lanes;         // floats in a vector; block buffers are padded to a multiple of it

  // y = x, x and y of F16 too.
  void (*convert)(void* y, DType yt, const void* x, DType xt, int64_t n);
  // y = a + b [+ c], b of F16 too; c may be null.
  void (*add)(void* y, DType yt, const void* a, DType at, const void* b, DType bt, const float* c,
              int64_t n);
  // y = x * factor, x of F16 too (x may be y).
  void (*scale)(void* y, DType yt, const void* x, DType xt, float factor, int64_t n);
  // y = alpha * x + beta * y; y is not read when beta is 0.
  void (*scale_add)(void* y, DType yt, const float* x, float alpha, float beta, int64_t n);

  // One row of `groups` groups of d columns; gain: d values, offset included. rstd may be null.
  void (*rms_norm_forward)(void* y, DType yt, float* rstd, const void* x, DType xt,
                           const float* gain, int64_t d, int64_t groups, float eps);
  void (*rms_norm_backward)(void* dx, DType dxt, const void* dy, DType dyt, const void* x, DType xt,
                            const float* rstd, const float* gain, int64_t d, int64_t groups,
                            bool accumulate);
  // One row of d columns; mean_rstd: two values, bias: d values.
  void (*layer_norm_forward)(void* y, DType yt, float* mean_rstd, const void* x, DType xt,
                             const float* gain, const float* bias, int64_t d, float eps);
  void (*layer_norm_backward)(void* dx, DType dxt, const void* dy, DType dyt, const void* x,
                              DType xt, const float* mean_rstd, const float* gain, int64_t d,
                              bool accumulate);
  // One row: `heads` heads of `d` columns of which the first 2R turn. cos_sin: R cosines, R sines.
  void (*rope)(void* x, DType xt, int64_t heads, int64_t d, int64_t r, const float* cos_sin,
               bool inverse);
  // y = f(gate) * up; up may be null. All of type t.
  void (*activation_forward)(void* y, const void* gate, const void* up, DType t, int64_t n,
                             Activation f);
  // d_up and up may be null.
  void (*activation_backward)(void* d_gate, void* d_up, const void* dy, const void* gate,
                              const void* up, DType t, int64_t n, Activation f);
  // y (+)= x * keep * factor; keep from Philox words for columns first_col.. of (site, row_key).
  void (*dropout)(void* y, DType yt, const void* x, DType xt, uint64_t seed, uint32_t site,
                  uint64_t row_key, int64_t first_col, int64_t n, uint32_t threshold, float factor,
                  bool accumulate);
  // y[j] = sum over p < k of x[p] * w[j * ldw + p], j < n; w of F16 too.
  void (*dot_rows)(float* y, const float* x, const void* w, DType wt, int64_t ldw, int64_t n,
                   int64_t k);
  // c(m,n) = (or += when accumulate) op(a)(m,k) b(k,n) of blocks that lie in cache; a is stored
  // (k,m) if `transposed`. Each element of c is accumulated over k in order.
  void (*block_gemm)(float* c, int64_t ldc, const float* a, int64_t lda, bool transposed,
                     const float* b, int64_t ldb, int64_t m, int64_t n, int64_t k, bool accumulate);
  // Maximum of a row and the sum of exp(x - maximum).
  void (*row_max_sum)(const void* x, DType xt, int64_t n, float* maximum, float* sum);
  // x = factor * exp(x - lse).
  void (*softmax_gradient)(void* x, DType xt, int64_t n, float lse, float factor);
  void (*adamw)(float* p, float* m, float* v, const float* g, int64_t n, const AdamWStep& step);
  double (*sum_of_squares)(const float* x, int64_t n);

  // See attention_task.h; scratch: attention_scratch() floats.
  void (*attention_forward)(const AttentionTask& task, float* scratch);
  void (*attention_backward)(const AttentionTask& task, float* scratch);
};

enum class CpuTarget : uint8_t { BASELINE, AVX2, AVX512 };

// The kernels of one target, or null where it is not built or the processor lacks it.
const CpuKernels* cpu_kernels(CpuTarget target);
// Those of the best target this processor has.
const CpuKernels& cpu_kernels();

}  // namespace lorashard
