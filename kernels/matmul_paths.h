// The ways a GEMM may be computed, for tests and benchmarks; everyone else includes matmul.h.
#pragma once

#include "kernels/stream.h"
#include "kernels/tensor.h"

namespace lorashard {

enum class GemmPath : uint8_t {
  AUTO,       // the fastest for the types and the processor
  WIDEN,      // operands that are not fp32 are widened tile by tile
  PRIMITIVE,  // oneDNN's matmul primitive, where both operands have one type
};

// The type that the CUDA backend converts a GEMM's operands to: for matmul_nt and matmul_nn that of
// output and input decides, for matmul_tn that of the operands.
inline DType cuda_gemm_type(ConstMatrix p, ConstMatrix q) {
  return p.dtype == DType::BF16 || q.dtype == DType::BF16 ? DType::BF16 : DType::F32;
}

// A copy of x in `type`, in the stream's scratch: how an operand of another type comes into a CUDA
// GEMM. While scratch is reserved, no more than the scratch is asked for.
Matrix converted(Stream& stream, ConstMatrix x, DType type, ScratchSlot slot);

void matmul_nt(Stream& stream, Matrix y, ConstMatrix x, ConstMatrix w, float alpha, float beta,
               GemmPath path);
void matmul_nn(Stream& stream, Matrix y, ConstMatrix x, ConstMatrix w, float alpha, float beta,
               GemmPath path);
void matmul_tn(Stream& stream, Matrix y, ConstMatrix a, ConstMatrix b, float alpha, float beta,
               GemmPath path);

}  // namespace lorashard
