// GEMM, row-major, any mixture of F32, BF16 and F16 operands, accumulated in fp32.
//
// fp32 (or mixed) GEMMs run in fp32: operands of another type are widened tile by tile into
// scratch, so that a frozen bf16 base is never copied whole. bf16 x bf16 runs natively where the
// processor has it and is widened elsewhere (bf16_gemms_are_native).
#pragma once

#include "kernels/stream.h"
#include "kernels/tensor.h"

namespace lorashard {

// True if bf16 GEMMs run on the processor's bf16 units.
bool bf16_gemms_are_native();

// y(M,N) = alpha * x(M,K) w(N,K)^T + beta * y. The forward GEMM of a linear layer.
void matmul_nt(Stream& stream, Matrix y, ConstMatrix x, ConstMatrix w, float alpha = 1,
               float beta = 0);

// y(M,N) = x(M,K) w(N,K)^T + bias(1,N). bias may be of any storage type. On CUDA it is added before
// y is written for the first time, and rounded to y's type.
void matmul_nt_bias(Stream& stream, Matrix y, ConstMatrix x, ConstMatrix w, ConstMatrix bias);

// y(M,N) = alpha * x(M,K) w(K,N) + beta * y. The input gradient of a linear layer, and the forward
// GEMM of one whose weight lies transposed.
void matmul_nn(Stream& stream, Matrix y, ConstMatrix x, ConstMatrix w, float alpha = 1,
               float beta = 0);

// y(M,N) = x(M,K) w(K,N) + bias(1,N), as matmul_nt_bias().
void matmul_nn_bias(Stream& stream, Matrix y, ConstMatrix x, ConstMatrix w, ConstMatrix bias);

// y(M,N) = alpha * a(T,M)^T b(T,N) + beta * y. The weight gradient of a linear layer; y is F32.
void matmul_tn(Stream& stream, Matrix y, ConstMatrix a, ConstMatrix b, float alpha = 1,
               float beta = 0);

}  // namespace lorashard
