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
  for (Matrix& stats : a.norm_stats) stats = arena.take(d.tokens, d.norm_stats, DType::F32);
  if (d.qk_norm) {
    a.q_rstd = arena.take(d.tokens, d.heads, DType::F32);
    a.k_rstd = arena.take(d.tokens, d.kv_heads, DType::F32);
  }
}

void plan_mlp(Arena& arena, const ActivationDims& d, BlockActivations& a) {
  a.gate = arena.take(d.tokens, d.features, d.type);
  if (d.gated_mlp) a.up = arena.take(d.tokens, d.features, d.type);
}

void plan_outputs(Arena& arena, const ActivationDims& d, BlockActivations& a) {
  for (Matrix& output : a.output) output = arena.take(d.tokens, d.hidden, d.type);
  for (Matrix& stats : a.output_stats) stats = arena.take(d.tokens, d.norm_stats, DType::F32);
}

// What a block does not keep, it takes from the one that all share.
void share_missing(BlockActivations& a, BlockActivations& shared) {
  const auto mine = a.all(), theirs = shared.all();
  for (size_t i = 0; i < mine.size(); ++i) {
    if (mine[i]->cols == 0) *mine[i] = *theirs[i];
  }
}

bool has_dora(const BlockWeights& w) {
  return std::any_of(w.groups.begin(), w.groups.end(), [](const LinearGroup& g) {
    return std::any_of(g.linears.begin(), g.linears.end(),
                       [](const Linear& l) { return l.lora && l.lora->dora; });
  });
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
  if (d.embedding_rank > 0) plan.embedding_u = arena.take(d.tokens, d.embedding_rank, DType::F32);
  int64_t widest = d.embedding_rank;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t from_top = count - i;
    const bool all = d.backward && from_top <= d.kept.all;
    const bool attention = d.backward && from_top <= d.kept.all + d.kept.attention;
    plan.keep.push_back(all ? Keep::All : attention ? Keep::Attention : Keep::Nothing);
    BlockActivations& a = plan.blocks.emplace_back();
    if (attention) plan_attention(arena, d, a);
    if (all) plan_mlp(arena, d, a);
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
  if (plan.blocks[0].gate.cols == 0) plan_mlp(arena, d, shared);
  if (d.post_norms && plan.blocks[0].output[Sublayer::Mlp].cols == 0)
    plan_outputs(arena, d, shared);
  for (BlockActivations& a : plan.blocks) share_missing(a, shared);
  BlockScratch& s = plan.scratch;
  s.norm = arena.take(d.tokens, d.hidden, d.type);
  s.delta = arena.take(d.tokens, d.hidden, d.type);
  s.mlp = arena.take(d.tokens, d.features, d.type);
  if (d.qk_norm) {
    s.q_rope = arena.take(d.tokens, d.q_width, d.type);
    s.k_rope = arena.take(d.tokens, d.kv_width, d.type);
  }
  if (d.backward) {
    s.d_mlp = arena.take(d.tokens, d.features, d.type);
    s.d_q = arena.take(d.tokens, d.q_width, d.type);
    s.d_k = arena.take(d.tokens, d.kv_width, d.type);
    s.d_v = arena.take(d.tokens, d.kv_width, d.type);
    s.d_o = arena.take(d.tokens, d.q_width, d.type);
  }
  plan.t = arena.take(d.tokens, widest, DType::F32);
  const bool dora = std::any_of(weights.begin(), weights.end(), has_dora);
  if (d.backward && dora) {
    const int64_t columns = std::max({d.hidden, d.q_width, d.kv_width, d.features});
    plan.z = arena.take(d.tokens, columns, d.type);
    if (d.dropout) plan.dropped = arena.take(d.tokens, columns, d.type);
  }
  return plan;
}

BlockActivations rows_of(const BlockActivations& a, int64_t first, int64_t tokens) {
  return trimmed(a, first, tokens);
}

BlockScratch rows_of(const BlockScratch& s, int64_t first, int64_t tokens) {
  return trimmed(s, first, tokens);
}

}  // namespace lorashard
