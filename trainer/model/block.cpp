#include "trainer/model/block.h"

#include <algorithm>
#include <array>

#include "kernels/activation.h"
#include "kernels/elementwise.h"
#include "kernels/profile.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "trainer/model/experts.h"

namespace lorashard {
namespace {

// The two sublayers: the norm that each begins with, its post-norm, and its last, row-parallel
// modules.
constexpr PerSublayer<NormRole> kInputNorm{{NormRole::AttentionInput, NormRole::MlpInput}};
constexpr PerSublayer<NormRole> kOutputNorm{{NormRole::AttentionOutput, NormRole::MlpOutput}};
constexpr PerSublayer<InputGroup> kLastGroup{{InputGroup::O, InputGroup::Down}};

// Of a sublayer's last module; empty where it has none.
ConstMatrix last_bias(const BlockWeights& w, Sublayer s) {
  const LinearGroup& group = w.groups[kLastGroup[s]];
  return group.linears.empty() ? ConstMatrix{} : group.linears[0].bias;
}

// A dense MLP's columns of memory that other layers' experts may need more of.
Matrix dense(const BlockWeights& w, Matrix m) {
  return m.col_range(0, w.groups[InputGroup::GateUp].linears[0].weight.matrix.rows);
}

void norm(const BlockContext& c, Matrix y, Matrix rstd, ConstMatrix x, ConstMatrix gain,
          const ResidualAdd& before = {}) {
  rms_norm_forward(c.linear.stream, y, rstd, x, gain, c.config.rms_norm_eps,
                   c.config.norm_gain_offset, before);
}

// c.scratch.norm = the normalised input of sublayer s. rstd may be empty.
void input_norm(const BlockContext& c, const BlockWeights& w, Sublayer s, ConstMatrix x,
                Matrix rstd, const ResidualAdd& before = {}) {
  norm(c, c.scratch.norm, rstd, x, w.norms[kInputNorm[s]], before);
}

void rotate(const BlockContext& c, const BlockWeights& w, Matrix x, int64_t heads, bool inverse) {
  rope(c.linear.stream, x, heads, c.positions, w.window ? c.window_rope_table : c.rope_table,
       inverse);
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
  const ConstMatrix q_gain = w.norms[NormRole::Query], k_gain = w.norms[NormRole::Key];
  if (!q_gain) return {acts.q, acts.k};
  norm(c, c.scratch.q_rope, acts.q_rstd, acts.q, q_gain);
  norm(c, c.scratch.k_rope, acts.k_rstd, acts.k, k_gain);
  rotate(c, w, c.scratch.q_rope, c.attention.heads, false);
  rotate(c, w, c.scratch.k_rope, c.attention.kv_heads, false);
  return {c.scratch.q_rope, c.scratch.k_rope};
}

// c.scratch.norm -> q, k, v; returns what attention takes.
QueryKey project_qkv(const BlockContext& c, const BlockWeights& w, const BlockActivations& acts,
                     DownProjection down) {
  linear_group_forward(c.linear, w.groups[InputGroup::QKV], std::array{acts.q, acts.k, acts.v},
                       c.scratch.norm, acts.u[InputGroup::QKV], down);
  if (!w.norms[NormRole::Query]) {
    rotate(c, w, acts.q, c.attention.heads, false);
    rotate(c, w, acts.k, c.attention.kv_heads, false);
  }
  return rotated_query_key(c, w, acts);
}

void project_gate_up(const BlockContext& c, const BlockWeights& w, const BlockActivations& acts,
                     DownProjection down) {
  if (w.experts) return experts_gate_up(c, w, acts, down);
  linear_group_forward(c.linear, w.groups[InputGroup::GateUp],
                       std::array{dense(w, acts.gate), dense(w, acts.up)}, c.scratch.norm,
                       acts.u[InputGroup::GateUp], down);
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

// Whether the input of this group needs a gradient: something below it is adapted.
bool needs_dx(const BlockWeights& w, InputGroup group, bool lowest) {
  if (!lowest) return true;
  return std::any_of(std::begin(kInputGroups), std::begin(kInputGroups) + size_t(group),
                     [&](InputGroup below) { return w.groups[below].adapted(); });
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
  const ConstMatrix gain = w.norms[kOutputNorm[s]];
  if (!gain) return dx;
  rms_norm_backward(c.linear.stream, c.scratch.delta, dx, acts.output[s], acts.output_rstd[s], gain,
                    c.config.norm_gain_offset, false);
  return c.scratch.delta;
}

bool mlp_sublayer_backward(const BlockContext& c, const BlockWeights& w, ConstMatrix x,
                           ConstMatrix dy, const BlockActivations& acts, bool lowest) {
  Stream& stream = c.linear.stream;
  const BlockScratch& s = c.scratch;
  if (w.experts) {
    const bool deeper = needs_dx(w, InputGroup::Router, lowest);
    experts_backward(c, w, dy, acts,
                     {.gate_up = w.groups[InputGroup::GateUp].adapted(),
                      .router = deeper || w.groups[InputGroup::Router].adapted(),
                      .x = deeper},
                     [&] { input_norm(c, w, Sublayer::Mlp, x, {}); });
    return deeper;
  }
  const Matrix gate = dense(w, acts.gate), up = dense(w, acts.up), mlp = dense(w, s.mlp),
               d_mlp = dense(w, s.d_mlp);
  if (w.groups[InputGroup::Down].adapted()) {
    gated_activation_forward(stream, mlp, gate, up, c.config.activation);
  }
  if (!group_backward(c, w, InputGroup::Down, d_mlp, std::array{dy}, mlp, acts, lowest))
    return false;
  gated_activation_backward(stream, gate, up, d_mlp, gate, up, c.config.activation);
  if (w.groups[InputGroup::GateUp].adapted()) input_norm(c, w, Sublayer::Mlp, x, {});
  return group_backward(c, w, InputGroup::GateUp, s.delta, std::array<ConstMatrix, 2>{gate, up},
                        s.norm, acts, lowest);
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
  if (w.norms[NormRole::Query]) {
    rms_norm_backward(stream, s.d_q, s.d_q, acts.q, acts.q_rstd, w.norms[NormRole::Query],
                      c.config.norm_gain_offset, false);
    rms_norm_backward(stream, s.d_k, s.d_k, acts.k, acts.k_rstd, w.norms[NormRole::Key],
                      c.config.norm_gain_offset, false);
  }
  if (w.groups[InputGroup::QKV].adapted()) input_norm(c, w, Sublayer::Attention, x, {});
  return group_backward(c, w, InputGroup::QKV, s.delta,
                        std::array<ConstMatrix, 3>{s.d_q, s.d_k, s.d_v}, s.norm, acts, lowest);
}

}  // namespace

void sublayer_forward(const BlockContext& c, const BlockWeights& w, Sublayer s, ConstMatrix x,
                      const ResidualAdd& before, const BlockActivations& acts, KvCache* cache) {
  input_norm(c, w, s, x, acts.rstd[s], before);
  ConstMatrix last_input;
  if (s == Sublayer::Attention) {
    attend(c, w, project_qkv(c, w, acts, DownProjection::Compute), acts, cache);
    last_input = acts.o;
  } else if (w.experts) {
    experts_route(c, w, acts);
    experts_gate_up(c, w, acts, DownProjection::Compute);
    return experts_down(c, w, sublayer_output(c, s, acts), acts);
  } else {
    project_gate_up(c, w, acts, DownProjection::Compute);
    const Matrix mlp = dense(w, c.scratch.mlp);
    gated_activation_forward(c.linear.stream, mlp, dense(w, acts.gate), dense(w, acts.up),
                             c.config.activation);
    last_input = mlp;
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
  const ConstMatrix bias = last_bias(w, s), gain = w.norms[kOutputNorm[s]];
  if (!gain) return {sum, c.scratch.delta, bias};
  if (bias) add_bias(c.linear.stream, acts.output[s], bias);
  norm(c, c.scratch.delta, acts.output_rstd[s], acts.output[s], gain);
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
    input_norm(c, w, Sublayer::Attention, x_in, acts.rstd[Sublayer::Attention]);
    attend(c, w, project_qkv(c, w, acts, DownProjection::Reuse), acts, nullptr);
  }
  input_norm(c, w, Sublayer::Mlp, x_mid, acts.rstd[Sublayer::Mlp]);
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
  rms_norm_backward(c.linear.stream, dx, c.scratch.delta, x, acts.rstd[s], w.norms[kInputNorm[s]],
                    c.config.norm_gain_offset, true);
}

}  // namespace lorashard
