// What a norm may add to its input first, in the same kernel: the output of the part of the layer
// before it. The sum takes the input's place.
#pragma once

#include "kernels/tensor.h"

namespace lorashard {

// x(T,D) is the norm's input. Norms that add work on whole rows.
struct ResidualAdd {
  Matrix sum;         // (T,D) x + delta + bias, rounded once to its type; may alias x
  ConstMatrix delta;  // (T,D)
  ConstMatrix bias;   // (1,D), any storage type; may be empty
  explicit operator bool() const { return bool(sum); }
};

}  // namespace lorashard
