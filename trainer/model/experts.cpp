#include "trainer/model/experts.h"

#include <array>
#include <vector>

#include "kernels/activation.h"
#include "kernels/matmul.h"
#include "kernels/profile.h"
#include "kernels/transfer.h"

namespace lorashard {
namespace {

// Memory of (T, k n) or more as the contiguous (R,n) rows of all choices.
Matrix rows_by_expert(Matrix memory, const Routing& r, int64_t n) {
  return matrix(memory.data, r.weights.rows * r.weights.cols, n, memory.dtype);
}

struct ExpertRows {
  int64_t expert, first, rows;
};
// The experts that have rows. Which these are is data: a recording stream, which has none, assumes
// that they share the rows equally.
std::vector<ExpertRows> expert_rows(Stream& stream, const Routing& r) {
  const int64_t experts = r.probabilities.cols, rows = r.weights.rows * r.weights.cols;
  std::vector<int32_t> offsets;
  if (stream.recording()) {
    for (int64_t e = 0; e <= experts; ++e) offsets.push_back(int32_t(rows * e / experts));
  } else {
    offsets = host_copy(stream, static_cast<const int32_t*>(r.offsets.data), experts + 1);
  }
  std::vector<ExpertRows> result;
  for (size_t e = 0; e < size_t(experts); ++e)
    if (offsets[e + 1] > offsets[e])
      result.push_back({int64_t(e), offsets[e], offsets[e + 1] - offsets[e]});
  return result;
}

// This rank's part of one expert's factors in a flat buffer, where B lies expert by expert
// (adapter_layout.h). `half`: of gate_up_proj's B, gate's rows or up's.
struct ExpertFactors {
  const LoraModule* m = nullptr;
  Range features;  // of this rank

  int64_t r() const { return m->lora_rank; }
  // A(r, in) of gate_up_proj; of down_proj its columns of this rank.
  Matrix a(float* flat, int64_t e) const {
    const Matrix all = matrix(flat + m->a.offset, m->a.rows, m->a.cols, DType::F32);
    const Matrix mine = all.row_range(e * r(), r());
    return m->linear.group == InputGroup::Down ? mine.col_range(features.begin, features.size())
                                               : mine;
  }
  // B(out, r) of down_proj; of gate_up_proj the rows of this rank in one half.
  Matrix b(float* flat, int64_t e, int64_t half = 0) const {
    const Matrix all = matrix(flat + m->b.offset, m->b.rows, m->b.cols, DType::F32);
    const int64_t out = m->linear.out_features;
    if (m->linear.group == InputGroup::Down) return all.row_range(e * out, out);
    return all.row_range(e * out + half * (out / 2) + features.begin, features.size());
  }
};

// A step's operands: rows of one expert in each matrix.
Matrix of(Matrix m, const ExpertRows& e) { return m.row_range(e.first, e.rows); }
ConstMatrix of(ConstMatrix m, const ExpertRows& e) { return m.row_range(e.first, e.rows); }

}  // namespace

void experts_route(const BlockContext& c, const BlockWeights& w, const BlockActivations& acts) {
  const Routing& r = acts.routing;
  // The logits come to where the probabilities will be.
  linear_group_forward(c.linear, w.groups[InputGroup::Router], std::array{r.probabilities},
                       c.scratch.norm, acts.u[InputGroup::Router]);
  route_forward(c.linear.stream, r, r.probabilities, c.config.normalized_routing);
}

void experts_gate_up(const BlockContext& c, const BlockWeights& w, const BlockActivations& acts,
                     DownProjection down) {
  Stream& stream = c.linear.stream;
  const Routing& r = acts.routing;
  const ExpertWeights& x = w.experts;
  const ExpertFactors lora{x.gate_up, x.features};
  const Matrix in = rows_by_expert(c.scratch.choices_in, r, c.scratch.norm.cols);
  const Matrix gate = rows_by_expert(acts.gate, r, x.features.size());
  const Matrix up = rows_by_expert(acts.up, r, x.features.size());
  const Matrix u = lora.m ? rows_by_expert(acts.u[InputGroup::GateUp], r, lora.r()) : Matrix{};
  gather_choices(stream, in, c.scratch.norm, r);
  for (const ExpertRows& e : expert_rows(stream, r)) {
    const Expert& expert = x.experts[size_t(e.expert)];
    frozen_forward(stream, of(gate, e), of(in, e), expert.gate);
    frozen_forward(stream, of(up, e), of(in, e), expert.up);
    if (!lora.m) continue;
    const ProfileSpan span("lora", "lora");
    if (down == DownProjection::Compute)
      matmul_nt(stream, of(u, e), of(in, e), lora.a(c.linear.values, e.expert));
    matmul_nt(stream, of(gate, e), of(u, e), lora.b(c.linear.values, e.expert, 0), lora.m->scaling,
              1);
    matmul_nt(stream, of(up, e), of(u, e), lora.b(c.linear.values, e.expert, 1), lora.m->scaling,
              1);
  }
}

void experts_down(const BlockContext& c, const BlockWeights& w, Matrix y,
                  const BlockActivations& acts) {
  Stream& stream = c.linear.stream;
  const Routing& r = acts.routing;
  const ExpertWeights& x = w.experts;
  const ExpertFactors lora{x.down, x.features};
  const Matrix mlp = rows_by_expert(c.scratch.mlp, r, x.features.size());
  const Matrix out = rows_by_expert(c.scratch.choices_in, r, y.cols);
  const Matrix u = lora.m ? rows_by_expert(acts.u[InputGroup::Down], r, lora.r()) : Matrix{};
  gated_activation_forward(stream, mlp, rows_by_expert(acts.gate, r, x.features.size()),
                           rows_by_expert(acts.up, r, x.features.size()), c.config.activation);
  weigh_choices(stream, mlp, mlp, r);
  for (const ExpertRows& e : expert_rows(stream, r)) {
    frozen_forward(stream, of(out, e), of(mlp, e), x.experts[size_t(e.expert)].down);
    if (!lora.m) continue;
    const ProfileSpan span("lora", "lora");
    matmul_nt(stream, of(u, e), of(mlp, e), lora.a(c.linear.values, e.expert));
    matmul_nt(stream, of(out, e), of(u, e), lora.b(c.linear.values, e.expert), lora.m->scaling, 1);
  }
  sum_choices(stream, y, out, r, false);
}

namespace {

// With h = act(gate) * up and s = weight h, the input of down: its factors' gradients and, where
// `ds` is not empty, ds(R,F) = dy W_down + LoRA's part. dy(R,H) by expert.
void down_backward(const BlockContext& c, const BlockWeights& w, const BlockActivations& acts,
                   Matrix ds, ConstMatrix dy, ConstMatrix h,
                   const std::vector<ExpertRows>& experts) {
  Stream& stream = c.linear.stream;
  const Routing& r = acts.routing;
  const ExpertFactors lora{w.experts.down, w.experts.features};
  const Matrix u = lora.m ? rows_by_expert(acts.u[InputGroup::Down], r, lora.r()) : Matrix{};
  const Matrix t = lora.m ? rows_by_expert(c.linear.t, r, lora.r()) : Matrix{};
  for (const ExpertRows& e : experts) {
    if (ds) frozen_backward(stream, of(ds, e), of(dy, e), w.experts.experts[size_t(e.expert)].down);
    if (!lora.m) continue;
    const ProfileSpan span("lora", "lora");
    const float s = lora.m->scaling;
    matmul_tn(stream, lora.b(c.linear.gradients, e.expert), of(dy, e), of(u, e), s, 1);
    matmul_nn(stream, of(t, e), of(dy, e), lora.b(c.linear.values, e.expert), s, 0);
    if (ds) matmul_nn(stream, of(ds, e), of(t, e), lora.a(c.linear.values, e.expert), 1, 1);
  }
  if (!lora.m) return;
  weigh_choices(stream, t, t, r);  // dA += (weight t)^T h = t^T s
  for (const ExpertRows& e : experts) {
    const ProfileSpan span("lora", "lora");
    matmul_tn(stream, lora.a(c.linear.gradients, e.expert), of(t, e), of(h, e), 1, 1);
  }
}

// From the gradients of gate and up, which stand in their place: those of their factors and, where
// `dx` is not empty, dx(R,H) = d_gate W_gate + d_up W_up + LoRA's part. in(R,H): x by expert.
void gate_up_backward(const BlockContext& c, const BlockWeights& w, const BlockActivations& acts,
                      Matrix dx, ConstMatrix in, const std::vector<ExpertRows>& experts) {
  Stream& stream = c.linear.stream;
  const Routing& r = acts.routing;
  const ExpertWeights& x = w.experts;
  const ExpertFactors lora{x.gate_up, x.features};
  const Matrix d_gate = rows_by_expert(acts.gate, r, x.features.size());
  const Matrix d_up = rows_by_expert(acts.up, r, x.features.size());
  const Matrix u = lora.m ? rows_by_expert(acts.u[InputGroup::GateUp], r, lora.r()) : Matrix{};
  const Matrix t = lora.m ? rows_by_expert(c.linear.t, r, lora.r()) : Matrix{};
  for (const ExpertRows& e : experts) {
    const Expert& expert = x.experts[size_t(e.expert)];
    if (dx) {
      frozen_backward(stream, of(dx, e), of(d_gate, e), expert.gate);
      frozen_backward(stream, of(dx, e), of(d_up, e), expert.up, 1);
    }
    if (!lora.m) continue;
    const ProfileSpan span("lora", "lora");
    const float s = lora.m->scaling;
    for (const int64_t half : {0, 1}) {
      const Matrix dy = half == 0 ? d_gate : d_up;
      matmul_tn(stream, lora.b(c.linear.gradients, e.expert, half), of(dy, e), of(u, e), s, 1);
      matmul_nn(stream, of(t, e), of(dy, e), lora.b(c.linear.values, e.expert, half), s,
                float(half));
    }
    matmul_tn(stream, lora.a(c.linear.gradients, e.expert), of(t, e), of(in, e), 1, 1);
    if (dx) matmul_nn(stream, of(dx, e), of(t, e), lora.a(c.linear.values, e.expert), 1, 1);
  }
}

}  // namespace

void experts_backward(const BlockContext& c, const BlockWeights& w, ConstMatrix dy,
                      const BlockActivations& acts, const ExpertsNeed& need,
                      const std::function<void()>& norm) {
  Stream& stream = c.linear.stream;
  const BlockScratch& s = c.scratch;
  const Routing& r = acts.routing;
  const int64_t features = w.experts.features.size(), hidden = s.norm.cols;
  const Matrix gate = rows_by_expert(acts.gate, r, features);
  const Matrix up = rows_by_expert(acts.up, r, features);
  const Matrix mlp = rows_by_expert(s.mlp, r, features);
  const Matrix d_mlp = rows_by_expert(s.d_mlp, r, features);
  const Matrix by_expert = rows_by_expert(s.choices_in, r, hidden);
  const std::vector<ExpertRows> experts = expert_rows(stream, r);

  gated_activation_forward(stream, mlp, gate, up, c.config.activation);
  gather_choices(stream, by_expert, dy, r);
  const bool need_mlp = need.gate_up || need.router || need.x;
  down_backward(c, w, acts, need_mlp ? d_mlp : Matrix{}, by_expert, mlp, experts);
  if (!need_mlp) return;
  weigh_choices_backward(stream, need.router ? s.d_weights : Matrix{}, d_mlp, d_mlp, mlp, r);

  if (need.gate_up || w.groups[InputGroup::Router].adapted()) norm();
  if (need.router) {
    route_backward(stream, s.d_logits, s.d_weights, r, c.config.normalized_routing);
    linear_group_backward(c.linear, w.groups[InputGroup::Router], need.x ? s.delta : Matrix{},
                          std::array<ConstMatrix, 1>{s.d_logits}, s.norm,
                          acts.u[InputGroup::Router]);
  }
  if (!need.gate_up && !need.x) return;
  gated_activation_backward(stream, gate, up, d_mlp, gate, up, c.config.activation);
  if (need.gate_up) gather_choices(stream, by_expert, s.norm, r);
  const Matrix dx = need.x ? rows_by_expert(s.choices_out, r, hidden) : Matrix{};
  gate_up_backward(c, w, acts, dx, by_expert, experts);
  if (need.x) sum_choices(stream, s.delta, dx, r, true);
}

}  // namespace lorashard
