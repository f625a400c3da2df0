#include "trainer/block.h"

#include <array>

#include "kernels/activation.h"
#include "kernels/elementwise.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"

namespace lorashard {
namespace {

void norm(const BlockContext& c, Matrix y, Matrix rstd, ConstMatrix x, ConstMatrix gain,
          const ResidualAdd& before = {}) {
  rms_norm_forward(c.linear.stream, y, rstd, x, gain, c.config.rms_norm_eps,
                   c.config.norm_gain_offset, before);
}

void rotate(const BlockContext& c, Matrix x, int64_t heads, bool inverse) {
  rope(c.linear.stream, x, heads, c.positions, c.rope_table, inverse);
}

AttentionShape shape_of(const BlockContext& c, const BlockWeights& w) {
  AttentionShape shape = c.attention;
  shape.window = w.window;
  return shape;
}

// The queries and keys that attention works on: acts.q/k after rope, or their normed and rotated
// copies when the family norms them.
struct QueryKey {
  Matrix q, k;
};
QueryKey rotated_query_key(const BlockContext& c, const BlockWeights& w,
                           const BlockActivations& acts) {
  if (!w.q_norm) return {acts.q, acts.k};
  norm(c, c.scratch.q_rope, acts.q_rstd, acts.q, w.q_norm);
  norm(c, c.scratch.k_rope, acts.k_rstd, acts.k, w.k_norm);
  rotate(c, c.scratch.q_rope, c.attention.heads, false);
  rotate(c, c.scratch.k_rope, c.attention.kv_heads, false);
  return {c.scratch.q_rope, c.scratch.k_rope};
}

// norm(x) -> q, k, v; returns what attention takes.
QueryKey project_qkv(const BlockContext& c, const BlockWeights& w, ConstMatrix x,
                     const ResidualAdd& before, const BlockActivations& acts, bool reuse_u) {
  norm(c, c.scratch.norm, acts.rstd_in, x, w.input_norm, before);
  linear_group_forward(c.linear, w.qkv, std::array{acts.q, acts.k, acts.v}, c.scratch.norm,
                       acts.u_qkv, true, reuse_u);
  if (!w.q_norm) {
    rotate(c, acts.q, c.attention.heads, false);
    rotate(c, acts.k, c.attention.kv_heads, false);
  }
  return rotated_query_key(c, w, acts);
}

void project_gate_up(const BlockContext& c, const BlockWeights& w, ConstMatrix x,
                     const ResidualAdd& before, const BlockActivations& acts, bool reuse_u) {
  norm(c, c.scratch.norm, acts.rstd_mid, x, w.post_norm, before);
  linear_group_forward(c.linear, w.gate_up, std::array{acts.gate, acts.up}, c.scratch.norm,
                       acts.u_gate_up, true, reuse_u);
}

// Appends k and v to the cache and attends over all of it.
void attend_with_cache(const BlockContext& c, const BlockWeights& w, const QueryKey& qk,
                       const BlockActivations& acts, KvCache& cache) {
  Stream& stream = c.linear.stream;
  const int64_t rows = qk.k.rows;
  convert(stream, cache.k.row_range(cache.used, rows), qk.k);
  convert(stream, cache.v.row_range(cache.used, rows), acts.v);
  cache.used += rows;
  attention_forward(stream, acts.o, {}, qk.q, cache.k.row_range(0, cache.used),
                    cache.v.row_range(0, cache.used), c.sequences, shape_of(c, w));
}

// What still needs a gradient below each group of products.
bool below_qkv(bool lowest) { return !lowest; }
bool below_o(const BlockWeights& w, bool lowest) { return below_qkv(lowest) || w.qkv.adapted(); }
bool below_gate_up(const BlockWeights& w, bool lowest) {
  return below_o(w, lowest) || w.o.adapted();
}
bool below_down(const BlockWeights& w, bool lowest) {
  return below_gate_up(w, lowest) || w.gate_up.adapted();
}

}  // namespace

void attention_half_forward(const BlockContext& c, const BlockWeights& w, ConstMatrix x,
                            const ResidualAdd& before, const BlockActivations& acts,
                            KvCache* cache) {
  const QueryKey qk = project_qkv(c, w, x, before, acts, false);
  if (cache) {
    attend_with_cache(c, w, qk, acts, *cache);
  } else {
    attention_forward(c.linear.stream, acts.o, acts.lse, qk.q, qk.k, acts.v, c.sequences,
                      shape_of(c, w));
  }
  linear_group_forward(c.linear, w.o, std::array{c.scratch.delta}, acts.o, acts.u_o, false, false);
}

void mlp_half_forward(const BlockContext& c, const BlockWeights& w, ConstMatrix x,
                      const ResidualAdd& before, const BlockActivations& acts) {
  project_gate_up(c, w, x, before, acts, false);
  gated_activation_forward(c.linear.stream, c.scratch.mlp, acts.gate, acts.up, c.config.activation);
  linear_group_forward(c.linear, w.down, std::array{c.scratch.delta}, c.scratch.mlp, acts.u_down,
                       false, false);
}

ResidualAdd residual_add(const BlockContext& c, const LinearGroup& group, Matrix sum) {
  return {sum, c.scratch.delta, group.linears[0].bias};
}

void add_to_residual(const BlockContext& c, const LinearGroup& group, Matrix sum, ConstMatrix x) {
  Stream& stream = c.linear.stream;
  if (group.linears[0].bias) add_bias(stream, c.scratch.delta, group.linears[0].bias);
  add(stream, sum, x, c.scratch.delta);
}

void block_recompute(const BlockContext& c, const BlockWeights& w, ConstMatrix x_in,
                     ConstMatrix x_mid, const BlockActivations& acts, Keep kept) {
  if (kept == Keep::All) return;
  if (kept == Keep::Nothing) {
    const QueryKey qk = project_qkv(c, w, x_in, {}, acts, true);
    attention_forward(c.linear.stream, acts.o, acts.lse, qk.q, qk.k, acts.v, c.sequences,
                      shape_of(c, w));
  }
  project_gate_up(c, w, x_mid, {}, acts, true);
}

bool mlp_half_backward(const BlockContext& c, const BlockWeights& w, ConstMatrix x_mid,
                       ConstMatrix dx, const BlockActivations& acts, bool lowest) {
  Stream& stream = c.linear.stream;
  const BlockScratch& s = c.scratch;
  if (w.down.adapted()) {
    gated_activation_forward(stream, s.mlp, acts.gate, acts.up, c.config.activation);
  }
  linear_group_backward(c.linear, w.down, below_down(w, lowest) ? s.d_mlp : Matrix{},
                        std::array{dx}, s.mlp, acts.u_down);
  if (!below_down(w, lowest)) return false;
  gated_activation_backward(stream, acts.gate, acts.up, s.d_mlp, acts.gate, acts.up,
                            c.config.activation);
  if (w.gate_up.adapted()) norm(c, s.norm, {}, x_mid, w.post_norm);
  linear_group_backward(c.linear, w.gate_up, below_gate_up(w, lowest) ? s.delta : Matrix{},
                        std::array<ConstMatrix, 2>{acts.gate, acts.up}, s.norm, acts.u_gate_up);
  return below_gate_up(w, lowest);
}

bool attention_half_backward(const BlockContext& c, const BlockWeights& w, ConstMatrix x_in,
                             ConstMatrix dx, const BlockActivations& acts, bool lowest) {
  Stream& stream = c.linear.stream;
  const BlockScratch& s = c.scratch;
  linear_group_backward(c.linear, w.o, below_o(w, lowest) ? s.d_o : Matrix{}, std::array{dx},
                        acts.o, acts.u_o);
  if (!below_o(w, lowest)) return false;
  const QueryKey qk = rotated_query_key(c, w, acts);
  attention_backward(stream, s.d_q, s.d_k, s.d_v, s.d_o, qk.q, qk.k, acts.v, acts.o, acts.lse,
                     c.sequences, shape_of(c, w));
  rotate(c, s.d_q, c.attention.heads, true);
  rotate(c, s.d_k, c.attention.kv_heads, true);
  if (w.q_norm) {
    rms_norm_backward(stream, s.d_q, s.d_q, acts.q, acts.q_rstd, w.q_norm,
                      c.config.norm_gain_offset, false);
    rms_norm_backward(stream, s.d_k, s.d_k, acts.k, acts.k_rstd, w.k_norm,
                      c.config.norm_gain_offset, false);
  }
  if (w.qkv.adapted()) norm(c, s.norm, {}, x_in, w.input_norm);
  linear_group_backward(c.linear, w.qkv, below_qkv(lowest) ? s.delta : Matrix{},
                        std::array<ConstMatrix, 3>{s.d_q, s.d_k, s.d_v}, s.norm, acts.u_qkv);
  return below_qkv(lowest);
}

void add_to_gradient(const BlockContext& c, Matrix dx, ConstMatrix x, ConstMatrix rstd,
                     ConstMatrix gain) {
  rms_norm_backward(c.linear.stream, dx, c.scratch.delta, x, rstd, gain, c.config.norm_gain_offset,
                    true);
}

}  // namespace lorashard
