// Groups of frozen linear modules with their LoRA parts, forward and backward. No collective
// happens here: trainer/model/layers.cpp all-reduces the output of a row-parallel group.
#pragma once

#include <span>

#include "trainer/model/weights.h"

namespace lorashard {

// Dropout on the input of A: off when rate is 0.
struct DropoutState {
  float rate = 0;
  uint64_t seed = 0;
  const uint64_t* row_keys = nullptr;  // T
};

// What the layers compute with.
struct LinearContext {
  Stream& stream;
  float* values;     // flat factors; null: forward alone, of the base without them
  float* gradients;  // flat gradients, null in forward-only use
  DropoutState dropout;
  Matrix t;  // (T, >= lora_rank) F32 scratch
  Matrix z;  // (T, >= N) scratch, with DoRA alone: outputs before their scaling
  Matrix
      dropped;  // (T, >= K) scratch, with DoRA and dropout alone: dropout(x), and gradients of it
};

// Where a forward pass has u = dropout(x) A^T from: computed, or kept from an earlier one over the
// same x (activation checkpointing keeps it, because it costs a read of all of x).
enum class DownProjection : uint8_t { Compute, Reuse };

// y_j(T,N_j) = x(T,K) W_j^T [+ bias_j, unless the group is row-parallel] + scaling_j dropout(x)
// A_j^T B_j^T for each module j (of a fused one, each piece); u(T,lora_rank) F32 = dropout(x) A^T
// of the adapted ones, kept for backward. With DoRA (Liu et al. 2024), s = magnitude / norm of each
// output:
//   y_j = s (x W_j^T + scaling_j x A_j^T B_j^T) [+ bias_j], and under dropout, as PEFT has it,
//   y_j = x W_j^T + (s - 1) dropout(x) W_j^T + s scaling_j dropout(x) A_j^T B_j^T [+ bias_j].
void linear_group_forward(const LinearContext& c, const LinearGroup& group,
                          std::span<const Matrix> y, ConstMatrix x, Matrix u,
                          DownProjection down = DownProjection::Compute);

// Adds the gradients of factors and trained biases to c.gradients, those of weights and biases
// where the module says (Linear::weight_gradient) and, unless dx is empty, dx(T,K) = sum_j dy_j W_j
// + scaling_j dropout(dy_j B_j A_j). DoRA's outputs before their scaling, of which the magnitudes'
// gradient is made, are computed again: a GEMM more for each such module.
void linear_group_backward(const LinearContext& c, const LinearGroup& group, Matrix dx,
                           std::span<const ConstMatrix> dy, ConstMatrix x, ConstMatrix u);

}  // namespace lorashard
