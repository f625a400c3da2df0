// Gated feed-forward activations: y = f(gate) * up (Shazeer 2020, GLU variants).
#pragma once

#include "kernels/stream.h"
#include "kernels/tensor.h"

namespace lorashard {

enum class Activation : uint8_t { SILU, GELU, GELU_TANH };

// y = f(gate) * up; up may be empty (then y = f(gate)). All (T,F), F32 or BF16; y may alias up.
void gated_activation_forward(Stream& stream, Matrix y, ConstMatrix gate, ConstMatrix up,
                              Activation f);

// d_gate = dy * up * f'(gate), d_up = dy * f(gate). d_gate may alias gate and d_up may alias up.
void gated_activation_backward(Stream& stream, Matrix d_gate, Matrix d_up, ConstMatrix dy,
                               ConstMatrix gate, ConstMatrix up, Activation f);

}  // namespace lorashard
