// Layer normalisation (Ba, Kiros and Hinton 2016) over whole rows.
#pragma once

#include "kernels/residual.h"
#include "kernels/stream.h"
#include "kernels/tensor.h"

namespace lorashard {

// For each row t: mean = mean(x), rstd = 1 / sqrt(mean((x - mean)^2) + eps);
//   y = (x - mean) * rstd * gain + bias.
// x, y: (T,D), F32 or BF16, may alias; mean_rstd: (T,2) F32, kept for backward, may be empty;
// gain, bias: (1,D), any storage type; bias may be empty.
// With `add`, the norm of add.sum, which is formed on the way.
void layer_norm_forward(Stream& stream, Matrix y, Matrix mean_rstd, ConstMatrix x, ConstMatrix gain,
                        ConstMatrix bias, float eps, const ResidualAdd& add = {});

// dx = (or += when accumulate) the gradient for x, given dy, x and mean_rstd. dx may alias dy.
// Gain and bias are frozen and get no gradient.
void layer_norm_backward(Stream& stream, Matrix dx, ConstMatrix dy, ConstMatrix x,
                         ConstMatrix mean_rstd, ConstMatrix gain, bool accumulate);

}  // namespace lorashard
