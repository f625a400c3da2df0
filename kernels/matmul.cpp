#include "kernels/matmul.h"

#include <dnnl.hpp>

#include <cassert>
#include <map>
#include <string>
#include <tuple>

#include "configs/error.h"
#include "kernels/cpu/table.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/elementwise.h"
#include "kernels/matmul_paths.h"
#include "kernels/parallel_for.h"
#include "kernels/profile.h"

namespace lorashard {
namespace {

// One operand: stored as m, used as m or as its transpose.
struct Operand {
  ConstMatrix m;
  bool transposed;

  int64_t rows() const { return transposed ? m.cols : m.rows; }
  int64_t cols() const { return transposed ? m.rows : m.cols; }
  // Rows [i, i + n) and columns [j, j + c) as used.
  Operand block(int64_t i, int64_t n, int64_t j, int64_t c) const {
    return {transposed ? m.block(j, c, i, n) : m.block(i, n, j, c), transposed};
  }
};

void check(dnnl_status_t status, const char* call) {
  if (status != dnnl_success)
    fail_run("oneDNN", std::string(call) + " failed with status " + std::to_string(status));
}

// y = alpha a b + beta y, all F32.
void gemm_f32(Matrix y, const Operand& a, const Operand& b, float alpha, float beta) {
  check(dnnl_sgemm(a.transposed ? 'T' : 'N', b.transposed ? 'T' : 'N', y.rows, y.cols, a.cols(),
                   alpha, static_cast<const float*>(a.m.data), a.m.ld,
                   static_cast<const float*>(b.m.data), b.m.ld, beta, static_cast<float*>(y.data),
                   y.ld),
        "sgemm");
}

// ---- GEMM on bf16 units: oneDNN's matmul primitive on the operands where they lie.

// What a primitive is built for.
using GemmKey = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int, int, int,
                           float, float, int>;

struct Primitive {
  dnnl::matmul run;
  dnnl::memory::desc y, a, b;
};

dnnl::engine& engine() {
  static dnnl::engine cpu(dnnl::engine::kind::cpu, 0);
  return cpu;
}

dnnl::memory::data_type onednn_type(DType t) {
  return t == DType::F32 ? dnnl::memory::data_type::f32 : dnnl::memory::data_type::bf16;
}

dnnl::memory::desc describe(const Operand& x) {
  const dnnl::memory::dims strides =
      x.transposed ? dnnl::memory::dims{1, x.m.ld} : dnnl::memory::dims{x.m.ld, 1};
  return {{x.rows(), x.cols()}, onednn_type(x.m.dtype), strides};
}

void gemm_primitive(Stream& stream, Matrix y, const Operand& a, const Operand& b, float alpha,
                    float beta) {
  // oneDNN keeps compiled code itself, but its look-up builds descriptors each time. Kept by
  // thread, because a rank is a thread in tests; bounded, because sequence lengths vary.
  constexpr size_t kMostPrimitives = 1024;
  thread_local std::map<GemmKey, Primitive> primitives;
  thread_local dnnl::stream queue(engine());
  const int types = int(y.dtype) * 64 + int(a.m.dtype) * 8 + int(b.m.dtype);
  const GemmKey key{y.rows, y.cols,       a.cols(),     y.ld,  a.m.ld, b.m.ld,
                    types,  a.transposed, b.transposed, alpha, beta,   stream.threads()};
  auto found = primitives.find(key);
  if (found == primitives.end()) {
    if (primitives.size() >= kMostPrimitives) primitives.clear();
    dnnl::primitive_attr attributes;
    if (alpha != 1) attributes.set_output_scales(0, {alpha});
    if (beta != 0) {
      dnnl::post_ops sum;
      sum.append_sum(beta);
      attributes.set_post_ops(sum);
    }
    Primitive p{{}, describe({y, false}), describe(a), describe(b)};
    p.run = dnnl::matmul(
        dnnl::matmul::primitive_desc(dnnl::matmul::desc(p.a, p.b, p.y), attributes, engine()));
    found = primitives.emplace(key, std::move(p)).first;
  }
  const Primitive& p = found->second;
  p.run.execute(queue,
                {{DNNL_ARG_SRC, dnnl::memory(p.a, engine(), const_cast<void*>(a.m.data))},
                 {DNNL_ARG_WEIGHTS, dnnl::memory(p.b, engine(), const_cast<void*>(b.m.data))},
                 {DNNL_ARG_DST, dnnl::memory(p.y, engine(), y.data)}});
  queue.wait();
}

// ---- other types: widened tile by tile.

// Floats of a widened tile: a few MiB, which stay in the outer cache until they are used.
constexpr int64_t kTileFloats = 1 << 20;
constexpr int64_t kTileDepth = 4096;  // most columns of a and rows of b in a tile

Operand widened(Stream& stream, const Operand& x, ScratchSlot slot) {
  if (x.m.dtype == DType::F32) return x;
  const CpuKernels& cpu = cpu_kernels();
  const Matrix wide = matrix(stream.scratch(slot, size_t(x.m.rows * x.m.cols) * sizeof(float)),
                             x.m.rows, x.m.cols, DType::F32);
  parallel_for(stream, x.m.rows, 16384 / x.m.cols + 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      cpu.convert(wide.at(i, 0), DType::F32, x.m.at(i, 0), x.m.dtype, x.m.cols);
  });
  return {wide, x.transposed};
}

void gemm_widened(Stream& stream, Matrix y, const Operand& a, const Operand& b, float alpha,
                  float beta) {
  const CpuKernels& cpu = cpu_kernels();
  const int64_t m = y.rows, n = y.cols, k = a.cols();
  const int64_t depth = std::min(k, kTileDepth);
  const bool narrow_y = y.dtype != DType::F32;
  // Operands that are fp32 already need no tiles of their own.
  const auto tile = [&](int64_t whole, bool limited) {
    return limited ? std::min(whole, std::max<int64_t>(kTileFloats / depth, 64)) : whole;
  };
  const int64_t mt = tile(m, a.m.dtype != DType::F32), nt = tile(n, b.m.dtype != DType::F32);
  for (int64_t i = 0; i < m; i += mt) {
    const int64_t ni = std::min(mt, m - i);
    Operand wide_a{};
    for (int64_t j = 0; j < n; j += nt) {
      const int64_t nj = std::min(nt, n - j);
      const Matrix block = y.block(i, ni, j, nj);
      const Matrix target =
          narrow_y
              ? matrix(stream.scratch(ScratchSlot::GemmResult, size_t(ni * nj) * sizeof(float)), ni,
                       nj, DType::F32)
              : block;
      for (int64_t p = 0; p < k; p += depth) {
        const int64_t np = std::min(depth, k - p);
        if (j == 0 || depth < k)
          wide_a = widened(stream, a.block(i, ni, p, np), ScratchSlot::GemmA);
        const Operand wide_b = widened(stream, b.block(p, np, j, nj), ScratchSlot::GemmB);
        gemm_f32(target, wide_a, wide_b, alpha, p > 0 ? 1 : narrow_y ? 0 : beta);
      }
      if (narrow_y)
        parallel_for(stream, ni, 16384 / nj + 1, [&](int64_t begin, int64_t end) {
          for (int64_t r = begin; r < end; ++r)
            cpu.scale_add(block.at(r, 0), block.dtype,
                          reinterpret_cast<const float*>(target.at(r, 0)), 1, beta, nj);
        });
    }
  }
}

// A few rows against stored rows (decoding): bound by reading w, which is widened in registers.
constexpr int64_t kFewRows = 4;

void gemm_rows(Stream& stream, Matrix y, ConstMatrix x, ConstMatrix w, float alpha, float beta) {
  const CpuKernels& cpu = cpu_kernels();
  const Operand wide = widened(stream, {x, false}, ScratchSlot::GemmA);
  parallel_for(stream, w.rows, 8192 / w.cols + 1, [&](int64_t begin, int64_t end) {
    constexpr int64_t kPiece = 64;
    for (int64_t j = begin; j < end; j += kPiece) {
      const int64_t n = std::min(kPiece, end - j);
      float sums[kPiece];
      for (int64_t i = 0; i < y.rows; ++i) {
        cpu.dot_rows(sums, reinterpret_cast<const float*>(wide.m.at(i, 0)), w.at(j, 0), w.dtype,
                     w.ld, n, w.cols);
        cpu.scale_add(y.at(i, j), y.dtype, sums, alpha, beta, n);
      }
    }
  });
}

double flops(Matrix y, int64_t k) { return 2.0 * double(y.rows) * double(y.cols) * double(k); }

// y = beta y: what is left of a GEMM with K = 0.
void scale_only(Stream& stream, Matrix y, float beta) {
  const CpuKernels& cpu = cpu_kernels();
  parallel_for(stream, y.rows, 1024, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (beta == 0)
        std::fill_n(y.at(i, 0), y.cols * size_of(y.dtype), 0);
      else
        cpu.scale(y.at(i, 0), y.dtype, y.at(i, 0), y.dtype, beta, y.cols);
    }
  });
}

void gemm(Stream& stream, Matrix y, const Operand& a, const Operand& b, float alpha, float beta,
          GemmPath path) {
  assert(a.rows() == y.rows && b.cols() == y.cols && a.cols() == b.rows());
  if (y.rows == 0 || y.cols == 0) return;
  if (a.cols() == 0) return scale_only(stream, y, beta);
  omp_set_num_threads(stream.threads());  // governs oneDNN's threads, for this thread's calls
  const bool one_type = a.m.dtype == b.m.dtype && a.m.dtype != DType::F16;
  const bool f32 = one_type && a.m.dtype == DType::F32 && y.dtype == DType::F32;
  if (path == GemmPath::AUTO && f32)
    gemm_f32(y, a, b, alpha, beta);
  else if (path == GemmPath::AUTO && y.rows <= kFewRows && !a.transposed && b.transposed)
    gemm_rows(stream, y, a.m, b.m, alpha, beta);
  else if (one_type &&
           (path == GemmPath::PRIMITIVE ||
            (path == GemmPath::AUTO && a.m.dtype == DType::BF16 && bf16_gemms_are_native())))
    gemm_primitive(stream, y, a, b, alpha, beta);
  else
    gemm_widened(stream, y, a, b, alpha, beta);
}

// Notes y = a b [+ bias] [+ beta y], and on CUDA the conversions that come before it (as in
// kernels/cuda/matmul.cpp). False: the stream does not record.
bool record_gemm(Stream& stream, const char* name, Matrix y, ConstMatrix a, ConstMatrix b,
                 double flops, float beta, DType cuda_type, ConstMatrix bias = {}) {
  if (!stream.recording()) return false;
  DType type = a.dtype == DType::BF16 && b.dtype == DType::BF16 ? DType::BF16 : DType::F32;
  if (stream.kernel_backend() == Backend::CUDA) {
    type = cuda_type;
    if (a.dtype != type) a = converted(stream, a, type, ScratchSlot::GemmA);
    if (b.dtype != type) b = converted(stream, b, type, ScratchSlot::GemmB);
    if (bias && bias.dtype != y.dtype) converted(stream, bias, y.dtype, ScratchSlot::GemmBias);
  }
  return stream.record(name, {traffic(y, a, b) + (beta != 0 ? traffic(y) : 0), flops, type});
}

void add_bias_row(Stream& stream, Matrix y, ConstMatrix bias) {
  const CpuKernels& cpu = cpu_kernels();
  parallel_for(stream, y.rows, 16384 / (y.cols + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      cpu.add(y.at(r, 0), y.dtype, y.at(r, 0), y.dtype, bias.data, bias.dtype, nullptr, y.cols);
  });
}

}  // namespace

Matrix converted(Stream& stream, ConstMatrix x, DType type, ScratchSlot slot) {
  const Matrix copy =
      matrix(stream.scratch(slot, size_t(x.rows * x.cols * size_of(type))), x.rows, x.cols, type);
  if (!stream.reserving()) convert(stream, copy, x);
  return copy;
}

bool bf16_gemms_are_native() {
  static const bool native = (dnnl_get_effective_cpu_isa() & dnnl_cpu_isa_avx512_core_bf16) ==
                             dnnl_cpu_isa_avx512_core_bf16;
  return native;
}

void matmul_nt(Stream& stream, Matrix y, ConstMatrix x, ConstMatrix w, float alpha, float beta,
               GemmPath path) {
  gemm(stream, y, {x, false}, {w, true}, alpha, beta, path);
}
void matmul_nn(Stream& stream, Matrix y, ConstMatrix x, ConstMatrix w, float alpha, float beta,
               GemmPath path) {
  gemm(stream, y, {x, false}, {w, false}, alpha, beta, path);
}
void matmul_tn(Stream& stream, Matrix y, ConstMatrix a, ConstMatrix b, float alpha, float beta,
               GemmPath path) {
  gemm(stream, y, {a, true}, {b, false}, alpha, beta, path);
}

void matmul_nt(Stream& stream, Matrix y, ConstMatrix x, ConstMatrix w, float alpha, float beta) {
  if (record_gemm(stream, "matmul_nt", y, x, w, flops(y, x.cols), beta, cuda_gemm_type(y, x)))
    return;
  const ProfileSpan span("kernel", "matmul_nt", flops(y, x.cols));
  LORASHARD_RETURN_ON_CUDA_WITH_SCRATCH(stream, matmul_nt(stream, y, x, w, alpha, beta));
  matmul_nt(stream, y, x, w, alpha, beta, GemmPath::AUTO);
}
void matmul_nt_bias(Stream& stream, Matrix y, ConstMatrix x, ConstMatrix w, ConstMatrix bias) {
  assert(bias.rows == 1 && bias.cols == y.cols);
  if (record_gemm(stream, "matmul_nt", y, x, w, flops(y, x.cols), 0, cuda_gemm_type(y, x), bias))
    return;
  const ProfileSpan span("kernel", "matmul_nt", flops(y, x.cols));
  LORASHARD_RETURN_ON_CUDA_WITH_SCRATCH(stream, matmul_nt_bias(stream, y, x, w, bias));
  matmul_nt(stream, y, x, w, 1, 0, GemmPath::AUTO);
  add_bias_row(stream, y, bias);
}
void matmul_nn_bias(Stream& stream, Matrix y, ConstMatrix x, ConstMatrix w, ConstMatrix bias) {
  assert(bias.rows == 1 && bias.cols == y.cols);
  if (record_gemm(stream, "matmul_nn", y, x, w, flops(y, x.cols), 0, cuda_gemm_type(y, x), bias))
    return;
  const ProfileSpan span("kernel", "matmul_nn", flops(y, x.cols));
  LORASHARD_RETURN_ON_CUDA_WITH_SCRATCH(stream, matmul_nn_bias(stream, y, x, w, bias));
  matmul_nn(stream, y, x, w, 1, 0, GemmPath::AUTO);
  add_bias_row(stream, y, bias);
}
void matmul_nn(Stream& stream, Matrix y, ConstMatrix x, ConstMatrix w, float alpha, float beta) {
  if (record_gemm(stream, "matmul_nn", y, x, w, flops(y, x.cols), beta, cuda_gemm_type(y, x)))
    return;
  const ProfileSpan span("kernel", "matmul_nn", flops(y, x.cols));
  LORASHARD_RETURN_ON_CUDA_WITH_SCRATCH(stream, matmul_nn(stream, y, x, w, alpha, beta));
  matmul_nn(stream, y, x, w, alpha, beta, GemmPath::AUTO);
}
void matmul_tn(Stream& stream, Matrix y, ConstMatrix a, ConstMatrix b, float alpha, float beta) {
  if (record_gemm(stream, "matmul_tn", y, a, b, flops(y, a.rows), beta, cuda_gemm_type(a, b)))
    return;
  const ProfileSpan span("kernel", "matmul_tn", flops(y, a.rows));
  LORASHARD_RETURN_ON_CUDA_WITH_SCRATCH(stream, matmul_tn(stream, y, a, b, alpha, beta));
  matmul_tn(stream, y, a, b, alpha, beta, GemmPath::AUTO);
}

}  // namespace lorashard
