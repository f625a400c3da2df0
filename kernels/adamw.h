// AdamW (Loshchilov and Hutter 2019) on one flat fp32 buffer, as torch.optim.AdamW.
#pragma once

#include "kernels/stream.h"

namespace lorashard {

struct AdamWStep {
  float learning_rate, beta1, beta2, epsilon, weight_decay;
  int64_t step;          // counts from 1: bias corrections are 1 - beta^step
  float gradient_scale;  // multiplies g first (1 / tokens, times the clipping factor)
};

// For each i: g' = g*gradient_scale; p -= lr*wd*p; m, v updated with g'; p -=
// lr*mhat/(sqrt(vhat)+eps).
void adamw(Stream& stream, float* p, float* m, float* v, const float* g, int64_t n,
           const AdamWStep& step);

// *sum = sum of x_i^2 in double, in an order that depends on n alone. `sum` lies on the device.
void sum_of_squares(Stream& stream, double* sum, const float* x, int64_t n);

// *high = x rounded to fp32, *low = what is left of it, rounded to fp32. All lie on the device.
void split_double(Stream& stream, float* high, float* low, const double* x);

}  // namespace lorashard
