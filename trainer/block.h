// One transformer layer on one tensor-parallel rank, forward and backward:
//
//   x_mid = x_in + sum over ranks of o(attention(rope(qkv(norm(x_in)))))
//   x_out = x_mid + sum over ranks of down(act(gate(norm(x_mid))) * up(norm(x_mid)))
//
// Two reductions forward and two backward, as plain tensor parallelism needs (Shoeybi et al. 2019,
// section 3); the LoRA parts ride along (DESIGN.md, invariant 2). x_in and x_mid are kept for
// backward; everything else of the layer can be rebuilt from them without a collective.
#pragma once

#include <string>

#include "kernels/attention.h"
#include "kernels/residual.h"
#include "parallel/collectives.h"
#include "trainer/linear.h"

namespace lorashard {

// Names of the layer's reductions in traces and profiles.
struct BlockLabels {
  std::string attention_forward, mlp_forward, attention_backward, mlp_backward;
  std::string forward, backward;  // the whole layer, in profiles
};

// What the layer's backward pass needs besides x_in and x_mid. T rows each.
struct BlockActivations {
  Matrix q, k, v;            // (T, heads*D) of this rank; q and k after rope, or, with q/k norms,
                             // as they left the projection
  Matrix o, lse;             // attention output and log-sum-exp
  Matrix gate, up;           // (T, F) of this rank
  Matrix rstd_in, rstd_mid;  // (T,1) F32
  Matrix q_rstd, k_rstd;     // (T, heads) F32, with q/k norms
  Matrix u_qkv, u_o, u_gate_up, u_down;  // LoRA's x A^T, F32; never rebuilt
};

// Memory that layers use in turn.
struct BlockScratch {
  Matrix norm;            // (T,H) normalised input
  Matrix delta;           // (T,H) what is added to the residual, or comes back to it
  Matrix mlp, d_mlp;      // (T,F)
  Matrix q_rope, k_rope;  // (T, heads*D) with q/k norms, else empty
  Matrix d_q, d_k, d_v;   // gradients
  Matrix d_o;             // (T, heads*D)
};

// What stays the same for all layers of one pass.
struct BlockContext {
  LinearContext linear;
  const ModelConfig& config;
  AttentionShape attention;  // the window is the layer's
  Sequences sequences;
  const int32_t* positions;
  ConstMatrix rope_table;
  BlockScratch scratch;
};

// Rows of one layer's key/value cache: k and v are (capacity, kv_heads*D). The new rows are written
// at `used`, and attention sees rows [0, used + T). One sequence.
struct KvCache {
  Matrix k, v;
  int64_t used = 0;
};

// Each half of a layer forms this rank's share of what is added to the residual in c.scratch.delta;
// the caller sums that over the ranks, and the next half or add_to_residual() adds it. Between the
// two it may run another part of the micro-batch.
// `before`: what the half before it left to add to x, if anything; the sum is this half's input.
void attention_half_forward(const BlockContext& c, const BlockWeights& w, ConstMatrix x,
                            const ResidualAdd& before, const BlockActivations& acts,
                            KvCache* cache);
void mlp_half_forward(const BlockContext& c, const BlockWeights& w, ConstMatrix x,
                      const ResidualAdd& before, const BlockActivations& acts);
// sum = x + what a half left in c.scratch.delta [+ the bias of its last product, `group`: w.o or
// w.down]. sum may be x.
ResidualAdd residual_add(const BlockContext& c, const LinearGroup& group, Matrix sum);
// The same by itself, where no norm follows at once.
void add_to_residual(const BlockContext& c, const LinearGroup& group, Matrix sum, ConstMatrix x);

// What a layer keeps for its backward pass besides x_in and x_mid; the rest is computed again.
// Keep::Attention does without gate and up, which are more than half of it and cost two products of
// the forward pass to rebuild.
enum class Keep : uint8_t { Nothing, Attention, All };

// Fills what was not kept of acts (the u's always are) again from x_in and x_mid.
void block_recompute(const BlockContext& c, const BlockWeights& w, ConstMatrix x_in,
                     ConstMatrix x_mid, const BlockActivations& acts, Keep kept);

// The same backwards. dx: the gradient of the half's output in; add_to_gradient() makes it that of
// its input, once c.scratch.delta is summed over the ranks. False: nothing below needs a gradient,
// as in the lowest adapted layer (`lowest`), and dx is left undefined.
// acts.gate and acts.up are overwritten.
bool mlp_half_backward(const BlockContext& c, const BlockWeights& w, ConstMatrix x_mid,
                       ConstMatrix dx, const BlockActivations& acts, bool lowest);
bool attention_half_backward(const BlockContext& c, const BlockWeights& w, ConstMatrix x_in,
                             ConstMatrix dx, const BlockActivations& acts, bool lowest);
// dx += the gradient of x through its norm. rstd and gain: those of the half's norm.
void add_to_gradient(const BlockContext& c, Matrix dx, ConstMatrix x, ConstMatrix rstd,
                     ConstMatrix gain);

}  // namespace lorashard
