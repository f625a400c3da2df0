// Elementwise kernels and conversions. Operands may be F32 or BF16 unless said otherwise; sums are
// formed in fp32 and rounded once to the output's type. Outputs may alias inputs of the same type.
#pragma once

#include "kernels/stream.h"
#include "kernels/tensor.h"

namespace lorashard {

// y = x, converted. F32, BF16 and F16 in any combination; rounds to nearest even.
void convert(Stream& stream, Matrix y, ConstMatrix x);
// y = 0.
void fill_zero(Stream& stream, Matrix y);
// y = a + b.
void add(Stream& stream, Matrix y, ConstMatrix a, ConstMatrix b);
// y(T,N) += bias(1,N). bias may be of any storage type.
void add_bias(Stream& stream, Matrix y, ConstMatrix bias);
// y *= factor.
void scale(Stream& stream, Matrix y, float factor);

}  // namespace lorashard
