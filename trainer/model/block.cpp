#include "trainer/model/block.h"

#include <algorithm>
#include <array>

#include "kernels/activation.h"
#include "kernels/elementwise.h"
#include "kernels/profile.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"

namespace lorashard {
namespace {

// The two sublayers: the norm that each begins with, its post-norm, and its last, row-parallel
// modules.
constexpr PerSublayer<NormRole> kInputNorm{{NormRole::AttentionInput, NormRole::MlpInput}};
constexpr PerSublayer<NormRole> kOutputNorm{{NormRole::AttentionOutput, NormRole::MlpOutput}};
constexpr PerSublayer<InputGroup> kLastGroup{{InputGroup::O, InputGroup::Down}};

const Linear& last_linear(const BlockWeights& w, Sublayer s) {
  return w.groups[kLastGroup[s]].linears[0];
}

// The norm of each query or key head.
void head_norm(const BlockContext& c, Matrix y, Matrix rstd, ConstMatrix x, ConstMatrix gain) {
  rms_norm_forward(c.linear.stream, y, rstd, x, gain, c.config.norm_eps, c.config.norm_gain_offset);
}

// c.scratch.norm = the normalised input of sublayer s. stats may be empty.
void input_norm(const BlockContext& c, const BlockWeights& w, Sublayer s, ConstMatrix x,
                Matrix stats, const ResidualAdd& before = {}) {
  norm_forward(c.linear.stream, c.config, c.scratch.norm, stats, x, w.norms[kInputNorm[s]], before);
}

void rotate(const BlockContext& c, const BlockWeights& w, Matrix x, int64_t heads, bool inverse) {
  if (c.config.rope.kind == RopeConfig::Kind::None) return;
  rope(c.linear.stream, x, heads, c.positions, w.window ? c.window_rope_table : c.rope_table,
       inverse);
}

AttentionShape shape_of(const BlockContext& c, const BlockWeights& w) {
  AttentionShape shape = c.attention;
  shape.window = w.window;
  shape.scale = w.attention_scale;
  return shape;
}

// The queries and keys that attention works on: acts.q/k after rope, or their normed and rotated
// copies when the family norms them.
struct QueryKey {
  Matrix q, k;
};
QueryKey rotated_query_key(const BlockContext& c, const BlockWeights& w,
                           const BlockActivations& acts) {
  const ConstMatrix q_gain = w.norms[NormRole::Query].gain, k_gain = w.norms[NormRole::Key].gain;
  if (!q_gain) return {acts.q, acts.k};
  head_norm(c, c.scratch.q_rope, acts.q_rstd, acts.q, q_gain);
  head_norm(c, c.scratch.k_rope, acts.k_rstd, acts.k, k_gain);
  rotate(c, w, c.scratch.q_rope, c.attention.heads, false);
  rotate(c, w, c.scratch.k_rope, c.attention.kv_heads, false);
  return {c.scratch.q_rope, c.scratch.k_rope};
}

// c.scratch.norm -> q, k, v; returns what attention takes.
QueryKey project_qkv(const BlockContext& c, const BlockWeights& w, const BlockActivations& acts,
                     DownProjection down) {
  linear_group_forward(c.linear, w.groups[InputGroup::QKV], std::array{acts.q, acts.k, acts.v},
                       c.scratch.norm, acts.u[InputGroup::QKV], down);
  if (!w.norms[NormRole::Query].gain) {
    rotate(c, w, acts.q, c.attention.heads, false);
    rotate(c, w, acts.k, c.attention.kv_heads, false);
  }
  return rotated_query_key(c, w, acts);
}

void project_gate_up(const BlockContext& c, const BlockWeights& w, const BlockActivations& acts,
                     DownProjection down) {
  linear_group_forward(c.linear, w.groups[InputGroup::GateUp], std::array{acts.gate, acts.up},
                       c.scratch.norm, acts.u[InputGroup::GateUp], down);
}

// acts.o, and acts.lse for backward. With a cache, k and v are appended to it first, attention runs
// over all of it, and there is no backward.
void attend(const BlockContext& c, const BlockWeights& w, const QueryKey& qk,
            const BlockActivations& acts, KvCache* cache) {
  Stream& stream = c.linear.stream;
  const AttentionShape shape = shape_of(c, w);
  if (!cache) {
    attention_forward(stream, acts.o, acts.lse, qk.q, qk.k, acts.v, c.sequences, shape);
    return;
  }
  const int64_t rows = qk.k.rows;
  convert(stream, cache->k.row_range(cache->used, rows), qk.k);
  convert(stream, cache->v.row_range(cache->used, rows), acts.v);
  cache->used += rows;
  attention_forward(stream, acts.o, {}, qk.q, cache->k.row_range(0, cache->used),
                    cache->v.row_range(0, cache->used), c.sequences, shape);
}

// Whether the input of this group needs a gradient: something below it is trained.
bool needs_dx(const BlockWeights& w, InputGroup group, bool lowest) {
  if (!lowest || w.trains_norm()) return true;
  return std::any_of(std::begin(kInputGroups), std::begin(kInputGroups) + size_t(group),
                     [&](InputGroup below) { return w.groups[below].trained(); });
}

// Adds the gradient of the gain of a norm of x, unless it is frozen, given that of its output.
void gain_backward(const BlockContext& c, const BlockWeights& w, NormRole role, ConstMatrix dy,
                   ConstMatrix x, ConstMatrix rstd) {
  if (const Matrix gradient = w.norm_gradients[role])
    rms_norm_gain_backward(c.linear.stream, gradient, dy, x, rstd);
}

// Gradients of a group's factors and, where something below needs it, of its input in dx. Returns
// whether it does.
bool group_backward(const BlockContext& c, const BlockWeights& w, InputGroup group, Matrix dx,
                    std::span<const ConstMatrix> dy, ConstMatrix x, const BlockActivations& acts,
                    bool lowest) {
  const bool deeper = needs_dx(w, group, lowest);
  linear_group_backward(c.linear, w.groups[group], deeper ? dx : Matrix{}, dy, x, acts.u[group]);
  return deeper;
}

// The gradient of sublayer s' output, before its post-norm if it has one, given that of what was
// added to the residual. In c.scratch.delta, which the sublayer's own backward pass writes last.
ConstMatrix output_gradient(const BlockContext& c, const BlockWeights& w, Sublayer s,
                            ConstMatrix dx, const BlockActivations& acts) {
  const NormWeights& post = w.norms[kOutputNorm[s]];
  if (!post.gain) return dx;
  gain_backward(c, w, kOutputNorm[s], dx, acts.output[s], acts.output_stats[s]);
  norm_backward(c.linear.stream, c.config, c.scratch.delta, dx, acts.output[s],
                acts.output_stats[s], post, false);
  return c.scratch.delta;
}

bool mlp_sublayer_backward(const BlockContext& c, const BlockWeights& w, ConstMatrix x,
                           ConstMatrix dy, const BlockActivations& acts, bool lowest) {
  Stream& stream = c.linear.stream;
  const BlockScratch& s = c.scratch;
  if (w.groups[InputGroup::Down].needs_input()) {
    gated_activation_forward(stream, s.mlp, acts.gate, acts.up, c.config.activation);
  }
  if (!group_backward(c, w, InputGroup::Down, s.d_mlp, std::array{dy}, s.mlp, acts, lowest))
    return false;
  gated_activation_backward(stream, acts.gate, acts.up, s.d_mlp, acts.gate, acts.up,
                            c.config.activation);
  if (w.groups[InputGroup::GateUp].needs_input()) input_norm(c, w, Sublayer::Mlp, x, {});
  return group_backward(c, w, InputGroup::GateUp, s.delta,
                        std::array<ConstMatrix, 2>{acts.gate, acts.up}, s.norm, acts, lowest);
}

bool attention_sublayer_backward(const BlockContext& c, const BlockWeights& w, ConstMatrix x,
                                 ConstMatrix dy, const BlockActivations& acts, bool lowest) {
  Stream& stream = c.linear.stream;
  const BlockScratch& s = c.scratch;
  if (!group_backward(c, w, InputGroup::O, s.d_o, std::array{dy}, acts.o, acts, lowest))
    return false;
  const QueryKey qk = rotated_query_key(c, w, acts);
  attention_backward(stream, s.d_q, s.d_k, s.d_v, s.d_o, qk.q, qk.k, acts.v, acts.o, acts.lse,
                     c.sequences, shape_of(c, w));
  rotate(c, w, s.d_q, c.attention.heads, true);
  rotate(c, w, s.d_k, c.attention.kv_heads, true);
  if (w.norms[NormRole::Query].gain) {
    gain_backward(c, w, NormRole::Query, s.d_q, acts.q, acts.q_rstd);
    gain_backward(c, w, NormRole::Key, s.d_k, acts.k, acts.k_rstd);
    rms_norm_backward(stream, s.d_q, s.d_q, acts.q, acts.q_rstd, w.norms[NormRole::Query].gain,
                      c.config.norm_gain_offset, false);
    rms_norm_backward(stream, s.d_k, s.d_k, acts.k, acts.k_rstd, w.norms[NormRole::Key].gain,
                      c.config.norm_gain_offset, false);
  }
  if (w.groups[InputGroup::QKV].needs_input()) input_norm(c, w, Sublayer::Attention, x, {});
  return group_backward(c, w, InputGroup::QKV, s.delta,
                        std::array<ConstMatrix, 3>{s.d_q, s.d_k, s.d_v}, s.norm, acts, lowest);
}

}  // namespace

void sublayer_forward(const BlockContext& c, const BlockWeights& w, Sublayer s, ConstMatrix x,
                      const ResidualAdd& before, const BlockActivations& acts, KvCache* cache) {
  input_norm(c, w, s, x, acts.norm_stats[s], before);
  ConstMatrix last_input;
  if (s == Sublayer::Attention) {
    attend(c, w, project_qkv(c, w, acts, DownProjection::Compute), acts, cache);
    last_input = acts.o;
  } else {
    project_gate_up(c, w, acts, DownProjection::Compute);
    gated_activation_forward(c.linear.stream, c.scratch.mlp, acts.gate, acts.up,
                             c.config.activation);
    last_input = c.scratch.mlp;
  }
  const InputGroup last = kLastGroup[s];
  linear_group_forward(c.linear, w.groups[last], std::array{sublayer_output(c, s, acts)},
                       last_input, acts.u[last]);
}

Matrix sublayer_output(const BlockContext& c, Sublayer s, const BlockActivations& acts) {
  return c.config.post_norms ? acts.output[s] : c.scratch.delta;
}

ResidualAdd residual_add(const BlockContext& c, const BlockWeights& w, Sublayer s,
                         const BlockActivations& acts, Matrix sum) {
  const ConstMatrix bias = last_linear(w, s).bias;
  const NormWeights& post = w.norms[kOutputNorm[s]];
  if (!post.gain) return {sum, c.scratch.delta, bias};
  if (bias) add_bias(c.linear.stream, acts.output[s], bias);
  norm_forward(c.linear.stream, c.config, c.scratch.delta, acts.output_stats[s], acts.output[s],
               post);
  return {sum, c.scratch.delta, {}};
}

void add_to_residual(const BlockContext& c, const BlockWeights& w, Sublayer s,
                     const BlockActivations& acts, Matrix sum, ConstMatrix x) {
  Stream& stream = c.linear.stream;
  const ResidualAdd last = residual_add(c, w, s, acts, sum);
  if (last.bias) add_bias(stream, c.scratch.delta, last.bias);
  add(stream, sum, x, c.scratch.delta);
}

void block_recompute(const BlockContext& c, const BlockWeights& w, ConstMatrix x_in,
                     ConstMatrix x_mid, const BlockActivations& acts, Keep kept) {
  if (kept == Keep::All) return;
  const ProfileSpan span("layer", "recompute");
  if (kept == Keep::Nothing) {
    input_norm(c, w, Sublayer::Attention, x_in, acts.norm_stats[Sublayer::Attention]);
    attend(c, w, project_qkv(c, w, acts, DownProjection::Reuse), acts, nullptr);
  }
  input_norm(c, w, Sublayer::Mlp, x_mid, acts.norm_stats[Sublayer::Mlp]);
  project_gate_up(c, w, acts, DownProjection::Reuse);
}

bool sublayer_backward(const BlockContext& c, const BlockWeights& w, Sublayer s, ConstMatrix x,
                       ConstMatrix dx, const BlockActivations& acts, bool lowest) {
  const ConstMatrix dy = output_gradient(c, w, s, dx, acts);
  return s == Sublayer::Attention ? attention_sublayer_backward(c, w, x, dy, acts, lowest)
                                  : mlp_sublayer_backward(c, w, x, dy, acts, lowest);
}

void add_to_gradient(const BlockContext& c, const BlockWeights& w, Sublayer s, Matrix dx,
                     ConstMatrix x, const BlockActivations& acts) {
  gain_backward(c, w, kInputNorm[s], c.scratch.delta, x, acts.norm_stats[s]);
  norm_backward(c.linear.stream, c.config, dx, c.scratch.delta, x, acts.norm_stats[s],
                w.norms[kInputNorm[s]], true);
}

}  // namespace lorashard
