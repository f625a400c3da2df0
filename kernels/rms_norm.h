// Root mean square normalisation (Zhang and Sennrich 2019), over whole rows or over groups of
// columns (the q/k norms of Qwen3 and Gemma 3 work per head).
#pragma once

#include "kernels/residual.h"
#include "kernels/stream.h"
#include "kernels/tensor.h"

namespace lorashard {

// For each row t and group g of D = gain.cols columns (x.cols = G * D):
//   rstd(t,g) = 1 / sqrt(mean(x^2) + eps);  y = x * rstd * (gain_offset + gain).
// x, y: (T, G*D), F32 or BF16, may alias; rstd: (T,G) F32, kept for backward, may be empty;
// gain: (1,D), any storage type; gain_offset is 0, or 1 where the family stores gain - 1.
// With `add`, the norm of add.sum, which is formed on the way; G is 1 then.
void rms_norm_forward(Stream& stream, Matrix y, Matrix rstd, ConstMatrix x, ConstMatrix gain,
                      float eps, float gain_offset, const ResidualAdd& add = {});

// dx = (or += when accumulate) the gradient for x, given dy, x and rstd. dx may alias dy.
void rms_norm_backward(Stream& stream, Matrix dx, ConstMatrix dy, ConstMatrix x, ConstMatrix rstd,
                       ConstMatrix gain, float gain_offset, bool accumulate);

// d_gain(1,D) += the gradient for the gain: the sum over rows t and groups g of
// dy(t,g,D) x(t,g,D) rstd(t,g), formed in double. d_gain: F32; dy, x: (T, G*D), F32 or BF16. The
// order of summation depends on the shape alone.
void rms_norm_gain_backward(Stream& stream, Matrix d_gain, ConstMatrix dy, ConstMatrix x,
                            ConstMatrix rstd);

}  // namespace lorashard
