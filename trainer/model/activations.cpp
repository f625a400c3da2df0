#include "trainer/model/activations.h"

#include <algorithm>

namespace lorashard {
namespace {

// The two parts of a layer: what its attention half keeps, and its gate and up.
void plan_attention(Arena& arena, const ActivationDims& d, BlockActivations& a) {
  a.q = arena.take(d.tokens, d.q_width, d.type);
  a.k = arena.take(d.tokens, d.kv_width, d.type);
  a.v = arena.take(d.tokens, d.kv_width, d.type);
  a.o = arena.take(d.tokens, d.q_width, d.type);
  a.lse = arena.take(d.tokens, d.heads, DType::F32);
  for (Matrix& rstd : a.rstd) rstd = arena.take(d.tokens, 1, DType::F32);
  if (d.qk_norm) {
    a.q_rstd = arena.take(d.tokens, d.heads, DType::F32);
    a.k_rstd = arena.take(d.tokens, d.kv_heads, DType::F32);
  }
}

void plan_mlp(Arena& arena, const ActivationDims& d, BlockActivations& a, int64_t width) {
  a.gate = arena.take(d.tokens, width, d.type);
  a.up = arena.take(d.tokens, width, d.type);
}

// Columns of a token's gate and up: of an MLP, or of all experts that it goes to.
int64_t mlp_width(const ActivationDims& d, const BlockWeights& w) {
  return w.experts ? d.experts_per_token * d.expert_features : d.features;
}

void plan_routing(Arena& arena, const ActivationDims& d, Routing& r) {
  r.probabilities = arena.take(d.tokens, d.experts, DType::F32);
  r.weights = arena.take(d.tokens, d.experts_per_token, DType::F32);
  for (Matrix* m : {&r.experts, &r.order, &r.places})
    *m = arena.take(d.tokens, d.experts_per_token, DType::I32);
  r.offsets = arena.take(2, d.experts + 1, DType::I32);  // of each part of a micro-batch
}

void plan_outputs(Arena& arena, const ActivationDims& d, BlockActivations& a) {
  for (Matrix& output : a.output) output = arena.take(d.tokens, d.hidden, d.type);
  for (Matrix& rstd : a.output_rstd) rstd = arena.take(d.tokens, 1, DType::F32);
}

// What a block does not keep, it takes from the one that all share.
void share_missing(BlockActivations& a, BlockActivations& shared) {
  const auto mine = a.all(), theirs = shared.all();
  for (size_t i = 0; i < mine.size(); ++i) {
    if (mine[i]->cols == 0) *mine[i] = *theirs[i];
  }
}

template <class Matrices>
Matrices trimmed(Matrices m, int64_t first, int64_t tokens) {
  for (Matrix* x : m.all()) {
    if (*x) *x = x->row_range(first, tokens);
  }
  return m;
}

}  // namespace

Matrix Arena::take(int64_t rows, int64_t cols, DType type) {
  constexpr size_t kAlign = 64;
  void* at = base_ ? base_ + next_ : nullptr;
  next_ += (size_t(rows * cols * size_of(type)) + kAlign - 1) / kAlign * kAlign;
  used_ = std::max(used_, next_);
  return matrix(at, rows, cols, type);
}

KeptLayers kept_layers(int64_t layers, Recompute recompute,
                       const std::function<bool(KeptLayers)>& fits) {
  if (recompute == Recompute::Full) return {};
  if (recompute == Recompute::Mlp) return {0, layers};
  KeptLayers kept{layers, 0};
  if (recompute == Recompute::None) return kept;
  // Gate and up go first: they give the most memory for the least work.
  while (kept.all > 0 && !fits(kept)) --kept.all, ++kept.attention;
  while (kept.attention > 0 && !fits(kept)) --kept.attention;
  return kept;
}

Activations plan_activations(Arena& arena, const ActivationDims& d,
                             const std::vector<BlockWeights>& weights) {
  Activations plan;
  const int64_t count = d.layers - d.first_layer;
  const Matrix first = arena.take(d.tokens, d.hidden, d.type);
  plan.residual.assign(size_t(2 * count + 1), first);
  if (d.backward) {
    for (size_t i = 1; i < plan.residual.size(); ++i) {
      plan.residual[i] = arena.take(d.tokens, d.hidden, d.type);
    }
    plan.dx = arena.take(d.tokens, d.hidden, d.type);
  }
  int64_t widest = 0, widest_mlp = 0;
  bool experts = false;
  for (const BlockWeights& w : weights) {
    widest_mlp = std::max(widest_mlp, mlp_width(d, w));
    experts = experts || w.experts;
  }
  for (int64_t i = 0; i < count; ++i) {
    const int64_t from_top = count - i;
    const bool all = d.backward && from_top <= d.kept.all;
    const bool attention = d.backward && from_top <= d.kept.all + d.kept.attention;
    plan.keep.push_back(all ? Keep::All : attention ? Keep::Attention : Keep::Nothing);
    BlockActivations& a = plan.blocks.emplace_back();
    if (attention) plan_attention(arena, d, a);
    // The layers below the first share its memory.
    const bool shared = i == 0 && d.first_layer > 0;
    const BlockWeights& w = weights[size_t(d.first_layer + i)];
    if (all) plan_mlp(arena, d, a, shared ? widest_mlp : mlp_width(d, w));
    if (shared ? experts : bool(w.experts)) plan_routing(arena, d, a.routing);
  }
  for (int64_t i = 0; i < count; ++i) {
    const BlockWeights& w = weights[size_t(d.first_layer + i)];
    BlockActivations& a = plan.blocks[size_t(i)];
    for (const InputGroup group : kInputGroups) {
      const int64_t lora_rank = w.groups[group].lora_rank;
      if (lora_rank > 0) a.u[group] = arena.take(d.tokens, lora_rank, DType::F32);
      widest = std::max(widest, lora_rank);
    }
    if (d.post_norms && d.backward) plan_outputs(arena, d, a);
  }
  plan.shared_at = arena.mark();
  // Layers below first_layer run forward only, in the memory of the block that comes first.
  BlockActivations shared;
  if (count == 0) plan.blocks.emplace_back();
  if (plan.blocks[0].q.cols == 0) plan_attention(arena, d, shared);
  if (plan.blocks[0].gate.cols == 0) plan_mlp(arena, d, shared, widest_mlp);
  if (count == 0 && experts) plan_routing(arena, d, plan.blocks[0].routing);
  if (d.post_norms && plan.blocks[0].output[Sublayer::Mlp].cols == 0)
    plan_outputs(arena, d, shared);
  for (BlockActivations& a : plan.blocks) share_missing(a, shared);
  BlockScratch& s = plan.scratch;
  s.norm = arena.take(d.tokens, d.hidden, d.type);
  s.delta = arena.take(d.tokens, d.hidden, d.type);
  s.mlp = arena.take(d.tokens, widest_mlp, d.type);
  if (experts) s.choices_in = arena.take(d.tokens, d.experts_per_token * d.hidden, d.type);
  if (d.qk_norm) {
    s.q_rope = arena.take(d.tokens, d.q_width, d.type);
    s.k_rope = arena.take(d.tokens, d.kv_width, d.type);
  }
  if (d.backward) {
    s.d_mlp = arena.take(d.tokens, widest_mlp, d.type);
    if (experts) {
      s.choices_out = arena.take(d.tokens, d.experts_per_token * d.hidden, d.type);
      s.d_weights = arena.take(d.tokens, d.experts_per_token, DType::F32);
      s.d_logits = arena.take(d.tokens, d.experts, DType::F32);
    }
    s.d_q = arena.take(d.tokens, d.q_width, d.type);
    s.d_k = arena.take(d.tokens, d.kv_width, d.type);
    s.d_v = arena.take(d.tokens, d.kv_width, d.type);
    s.d_o = arena.take(d.tokens, d.q_width, d.type);
  }
  plan.t = arena.take(d.tokens, widest, DType::F32);
  return plan;
}

BlockActivations rows_of(const BlockActivations& a, int64_t first, int64_t tokens) {
  BlockActivations rows = trimmed(a, first, tokens);
  if (a.routing.offsets) rows.routing.offsets = a.routing.offsets.row_range(first > 0 ? 1 : 0, 1);
  return rows;
}

BlockScratch rows_of(const BlockScratch& s, int64_t first, int64_t tokens) {
  return trimmed(s, first, tokens);
}

}  // namespace lorashard
