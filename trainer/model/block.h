// One transformer layer on one tensor-parallel rank, forward and backward:
//
//   x_mid = x_in + all-reduce of o(attention(rope(qkv(norm(x_in)))))
//   x_out = x_mid + all-reduce of down(act(gate(norm(x_mid))) * up(norm(x_mid)))
//
// and, in families with post-norms, the norm of each all-reduced output before it is added.
//
// A block is two sublayers, attention and MLP, each a tensor-parallel region
// (parallel/tensor_region.h): one all-reduce forward and one backward. LoRA's partial outputs are
// summed into that all-reduce; its gradients wait for the optimizer step's. x_in and x_mid are kept
// for backward; everything else of the layer can be rebuilt from them without a collective.
#pragma once

#include <array>

#include "kernels/attention.h"
#include "kernels/residual.h"
#include "kernels/routing.h"
#include "trainer/model/linear.h"

namespace lorashard {

enum class Sublayer : uint8_t { Attention, Mlp };
template <class T>
using PerSublayer = EnumArray<Sublayer, 2, T>;

// What a layer's backward pass needs besides x_in and x_mid. T rows each.
struct BlockActivations {
  Matrix q, k, v;            // (T, heads*D), twice (T, kv_heads*D) of this rank; q and k after
                             // rope, or, with q/k norms, as they left the projection
  Matrix o, lse;             // attention output and log-sum-exp
  Matrix gate, up;           // (T, F) of this rank
  PerSublayer<Matrix> rstd;  // (T,1) F32, of the norm that the sublayer begins with
  Matrix q_rstd, k_rstd;     // (T, heads) and (T, kv_heads) F32, with q/k norms
  PerGroup<Matrix> u;        // dropout(x) A^T (T, lora_rank) F32; always kept
  // With post-norms: each sublayer's all-reduced output (T,H), with its bias, and the norm's rstd
  // (T,1) F32; always kept, because no recomputation gives it without an all-reduce.
  PerSublayer<Matrix> output, output_rstd;
  // With experts: gate and up are (T k, F) expert by expert, in memory of T rows or more; always
  // kept is which experts each token goes to.
  Routing routing;

  std::array<Matrix*, 25> all() {
    using enum InputGroup;
    return {&q,
            &k,
            &v,
            &o,
            &lse,
            &gate,
            &up,
            &rstd[Sublayer::Attention],
            &rstd[Sublayer::Mlp],
            &q_rstd,
            &k_rstd,
            &u[QKV],
            &u[O],
            &u[Router],
            &u[GateUp],
            &u[Down],
            &output[Sublayer::Attention],
            &output[Sublayer::Mlp],
            &output_rstd[Sublayer::Attention],
            &output_rstd[Sublayer::Mlp],
            &routing.probabilities,
            &routing.weights,
            &routing.experts,
            &routing.order,
            &routing.places};
  }
};

// Memory that layers use in turn.
struct BlockScratch {
  Matrix norm;            // (T,H) normalised input
  Matrix delta;           // (T,H) forward: a sublayer's output, or its post-norm; backward: the
                          // gradient of its normalised input. All-reduced here by layers.cpp
  Matrix mlp, d_mlp;      // (T,F)
  Matrix q_rope, k_rope;  // as q and k, with q/k norms; else empty
  Matrix d_q, d_k, d_v;   // as q, k, v
  Matrix d_o;             // (T, heads*D)
  // With experts, rows of choices by expert: (T, k H), and gradients (T,k) and (T,E) F32.
  Matrix choices_in, choices_out, d_weights, d_logits;

  std::array<Matrix*, 14> all() {
    return {&norm, &delta, &mlp, &d_mlp,      &q_rope,      &k_rope,    &d_q,
            &d_k,  &d_v,   &d_o, &choices_in, &choices_out, &d_weights, &d_logits};
  }
};

// What all layers of one forward or backward pass share.
struct BlockContext {
  LinearContext linear;
  const ModelConfig& config;
  AttentionShape attention;  // the window is the layer's
  Sequences sequences;
  const int32_t* positions;
  ConstMatrix rope_table;         // of kernels/rope.h
  ConstMatrix window_rope_table;  // of layers with a window; the same one where a family has one
  BlockScratch scratch;
};

// Rows of one layer's key/value cache: k and v are (capacity, kv_heads*D). The new rows are written
// at `used`, and attention sees rows [0, used + T). One sequence.
struct KvCache {
  Matrix k, v;
  int64_t used = 0;
};

// Where sublayer s forms its output: kept with post-norms, else c.scratch.delta.
Matrix sublayer_output(const BlockContext& c, Sublayer s, const BlockActivations& acts);
// Forms this rank's partial output of a sublayer in sublayer_output(); the caller all-reduces it,
// and the next sublayer or add_to_residual() adds it to the residual. Between the two it may run
// another part of the micro-batch. `before`: what the sublayer before it left to add to x, if
// anything; the sum is this sublayer's input. `cache` is of the layer, or null.
void sublayer_forward(const BlockContext& c, const BlockWeights& w, Sublayer s, ConstMatrix x,
                      const ResidualAdd& before, const BlockActivations& acts, KvCache* cache);
// sum = x + the all-reduced output of sublayer s [+ its bias], which goes through the post-norm
// here if there is one. sum may be x.
ResidualAdd residual_add(const BlockContext& c, const BlockWeights& w, Sublayer s,
                         const BlockActivations& acts, Matrix sum);
// residual_add() by itself, after the last sublayer, where no norm follows at once.
void add_to_residual(const BlockContext& c, const BlockWeights& w, Sublayer s,
                     const BlockActivations& acts, Matrix sum, ConstMatrix x);

// What a layer keeps for its backward pass besides x_in and x_mid; the rest is computed again
// (activation checkpointing). Keep::Attention drops gate and up, which are more than half of
// it and cost two GEMMs of the forward pass to rebuild.
enum class Keep : uint8_t { Nothing, Attention, All };

// Fills what was not kept of acts (the u's always are) again from x_in and x_mid.
void block_recompute(const BlockContext& c, const BlockWeights& w, ConstMatrix x_in,
                     ConstMatrix x_mid, const BlockActivations& acts, Keep kept);

// Backward through sublayer s with input x. dx: the gradient of its output in; this rank's partial
// gradient of its normalised input comes to c.scratch.delta, and once that is all-reduced
// add_to_gradient() makes dx the gradient of x. False: nothing below needs a gradient (`lowest`:
// this is the lowest adapted layer), and c.scratch.delta is not formed. acts.gate and acts.up are
// overwritten.
bool sublayer_backward(const BlockContext& c, const BlockWeights& w, Sublayer s, ConstMatrix x,
                       ConstMatrix dx, const BlockActivations& acts, bool lowest);
// dx += the gradient of x through the norm that sublayer s begins with.
void add_to_gradient(const BlockContext& c, const BlockWeights& w, Sublayer s, Matrix dx,
                     ConstMatrix x, const BlockActivations& acts);

}  // namespace lorashard
