// The ways a product may be computed, for tests and benchmarks; everyone else includes matmul.h.
#pragma once

#include "kernels/stream.h"
#include "kernels/tensor.h"

namespace lorashard {

enum class ProductPath : uint8_t {
  AUTO,       // the fastest for the types and the processor
  WIDEN,      // operands that are not fp32 are widened tile by tile
  PRIMITIVE,  // oneDNN's matmul primitive, where both operands have one type
};

void matmul_nt(Stream& stream, Matrix y, ConstMatrix x, ConstMatrix w, float alpha, float beta,
               ProductPath path);
void matmul_nn(Stream& stream, Matrix y, ConstMatrix x, ConstMatrix w, float alpha, float beta,
               ProductPath path);
void matmul_tn(Stream& stream, Matrix y, ConstMatrix a, ConstMatrix b, float alpha, float beta,
               ProductPath path);

}  // namespace lorashard
