#include "trainer/model/linear.h"

#include "kernels/columns.h"
#include "kernels/dropout.h"
#include "kernels/elementwise.h"
#include "kernels/lora_dropout.h"
#include "kernels/matmul.h"
#include "kernels/profile.h"

namespace lorashard {
namespace {

// The A factors of a group's adapted modules as one matrix (lora_rank, this rank's columns): they
// lie one after the other in a flat buffer (adapter_layout()).
Matrix stacked_a(const LinearGroup& group, float* flat) {
  for (const Linear& l : group.linears) {
    if (!l.lora) continue;
    Matrix a = Factors::local_a(*l.lora, flat);
    a.rows = group.lora_rank;
    return a;
  }
  return {};
}

// The dropout mask on the input of one module's A.
DropoutMask mask_of(const LinearContext& c, const LoraModule& m) {
  return {c.dropout.seed, m.site, c.dropout.row_keys, m.a.local_cols[0].begin, c.dropout.rate};
}

// The module's columns of u or t, which all its pieces share.
template <class M>
M columns_of(const Linear& l, M u) {
  return u.col_range(l.u_column, l.lora->lora_rank);
}

// u = dropout(x) A^T of the adapted modules.
void down_project(const LinearContext& c, const LinearGroup& group, Matrix u, ConstMatrix x) {
  const ProfileSpan span("lora", "lora");
  if (c.dropout.rate == 0) {
    matmul_nt(c.stream, u, x, stacked_a(group, c.values));
    return;
  }
  for (const Linear& l : group.linears) {
    if (!l.lora || l.piece > 0) continue;
    lora_dropout_forward(c.stream, columns_of(l, u), x, Factors::local_a(*l.lora, c.values),
                         mask_of(c, *l.lora));
  }
}

// y += scaling u B^T.
void add_up_projection(const LinearContext& c, const Linear& l, Matrix y, ConstMatrix u) {
  const ProfileSpan span("lora", "lora");
  matmul_nt(c.stream, y, u, Factors::local_b(*l.lora, c.values, l.piece), l.lora->scaling, 1);
}

// dB += scaling dy^T u;  t = scaling dy B, summed over the pieces of a module.
void up_projection_backward(const LinearContext& c, const Linear& l, Matrix t, ConstMatrix dy,
                            ConstMatrix u) {
  const ProfileSpan span("lora", "lora");
  const float scaling = l.lora->scaling;
  matmul_tn(c.stream, Factors::local_b(*l.lora, c.gradients, l.piece), dy, u, scaling, 1);
  matmul_nn(c.stream, t, dy, Factors::local_b(*l.lora, c.values, l.piece), scaling,
            l.piece == 0 ? 0 : 1);
}

// dA += t^T dropout(x) of the adapted modules and, unless dx is empty, dx += dropout(t A).
void down_projection_backward(const LinearContext& c, const LinearGroup& group, Matrix dx,
                              ConstMatrix t, ConstMatrix x) {
  const ProfileSpan span("lora", "lora");
  if (c.dropout.rate == 0) {  // all modules at once
    matmul_tn(c.stream, stacked_a(group, c.gradients), t, x, 1, 1);
    if (dx) matmul_nn(c.stream, dx, t, stacked_a(group, c.values), 1, 1);
    return;
  }
  for (const Linear& l : group.linears) {
    if (!l.lora || l.piece > 0) continue;
    const LoraModule& m = *l.lora;
    const ConstMatrix t_j = columns_of(l, t);
    lora_dropout_wgrad(c.stream, Factors::local_a(m, c.gradients), t_j, x, mask_of(c, m));
    if (dx) lora_dropout_dgrad(c.stream, dx, t_j, Factors::local_a(m, c.values), mask_of(c, m));
  }
}

// db += the sums of dy's columns. Behind the all-reduce of a row-parallel group every rank has the
// same dy, and adds the sums of its share.
void bias_backward(const LinearContext& c, const LinearGroup& group, const Linear& l,
                   ConstMatrix dy) {
  const AdapterTensor& bias = *l.trained_bias;
  if (!group.row_parallel) {
    add_column_sums(c.stream, local_block(bias, c.gradients, l.piece), dy);
  } else if (bias.share.size() > 0) {
    add_column_sums(c.stream, share_of(bias, c.gradients),
                    dy.col_range(bias.share.begin, bias.share.size()));
  }
}

// What DoRA's W and A see: x, or dropout(x) in scratch.
ConstMatrix dora_input(const LinearContext& c, const LoraModule& m, ConstMatrix x) {
  if (c.dropout.rate == 0) return x;
  const DropoutMask mask = mask_of(c, m);
  const Matrix dropped = c.dropped.block(0, x.rows, 0, x.cols);
  dropout(c.stream, dropped, x, mask.seed, mask.site, mask.row_keys, mask.first_col, mask.p, false);
  return dropped;
}

// One module of a group with DoRA; u is its own.
void dora_forward(const LinearContext& c, const Linear& l, Matrix y, ConstMatrix x, ConstMatrix u,
                  ConstMatrix bias) {
  const LoraModule& m = *l.lora;
  if (c.dropout.rate == 0) {
    frozen_forward(c.stream, y, x, l.weight);
    add_up_projection(c, l, y, u);
    scale_columns(c.stream, y, y, l.dora.scale);
    if (bias) add_bias(c.stream, y, bias);
    return;
  }
  const Matrix z = c.z.block(0, y.rows, 0, y.cols);
  frozen_forward(c.stream, y, x, l.weight, bias);
  frozen_forward(c.stream, z, dora_input(c, m, x), l.weight);
  scale_columns(c.stream, y, z, l.dora.excess, true);
  matmul_nt(c.stream, z, u, Factors::local_b(m, c.values, l.piece), m.scaling, 0);
  scale_columns(c.stream, y, z, l.dora.scale, true);
}

// The magnitudes' gradient, dm += dy z / norm; dx = (or, not `first`, +=) what W gives. Returns the
// gradient of z, in scratch: what LoRA's part goes on with.
ConstMatrix dora_backward(const LinearContext& c, const Linear& l, Matrix dx, ConstMatrix dy,
                          ConstMatrix x, ConstMatrix u, bool first) {
  const LoraModule& m = *l.lora;
  const Matrix z = c.z.block(0, dy.rows, 0, dy.cols);
  frozen_forward(c.stream, z, dora_input(c, m, x), l.weight);
  add_up_projection(c, l, z, u);
  scale_columns(c.stream, z, z, l.dora.inverse_norm);
  add_column_sums(c.stream, local_block(m.magnitude, c.gradients), dy, z);
  if (dx && c.dropout.rate > 0) {
    frozen_backward(c.stream, dx, dy, l.weight, first ? 0 : 1);
    scale_columns(c.stream, z, dy, l.dora.excess);
    const Matrix dropped = c.dropped.block(0, x.rows, 0, x.cols);
    frozen_backward(c.stream, dropped, z, l.weight);
    const DropoutMask mask = mask_of(c, m);
    dropout(c.stream, dx, dropped, mask.seed, mask.site, mask.row_keys, mask.first_col, mask.p,
            true);
  }
  scale_columns(c.stream, z, dy, l.dora.scale);
  if (dx && c.dropout.rate == 0) frozen_backward(c.stream, dx, z, l.weight, first ? 0 : 1);
  return z;
}

}  // namespace

void linear_group_forward(const LinearContext& c, const LinearGroup& group,
                          std::span<const Matrix> y, ConstMatrix x, Matrix u, DownProjection down) {
  const bool adapted = group.adapted() && c.values;
  if (adapted && down == DownProjection::Compute) down_project(c, group, u, x);
  for (size_t j = 0; j < group.linears.size(); ++j) {
    const Linear& l = group.linears[j];
    const ConstMatrix bias = group.row_parallel ? ConstMatrix{} : l.bias;
    if (adapted && l.dora) {
      dora_forward(c, l, y[j], x, columns_of(l, u), bias);
      continue;
    }
    frozen_forward(c.stream, y[j], x, l.weight, bias);
    if (adapted && l.lora) add_up_projection(c, l, y[j], columns_of(l, u));
  }
}

void linear_group_backward(const LinearContext& c, const LinearGroup& group, Matrix dx,
                           std::span<const ConstMatrix> dy, ConstMatrix x, ConstMatrix u) {
  const Matrix t = group.adapted() ? c.t.block(0, x.rows, 0, group.lora_rank) : Matrix{};
  for (size_t j = 0; j < group.linears.size(); ++j) {
    const Linear& l = group.linears[j];
    ConstMatrix dz = dy[j];
    if (l.dora) {
      dz = dora_backward(c, l, dx, dy[j], x, columns_of(l, u), j == 0);
    } else if (dx) {
      frozen_backward(c.stream, dx, dy[j], l.weight, j == 0 ? 0 : 1);
    }
    if (l.weight_gradient) matmul_tn(c.stream, l.weight_gradient, dy[j], x, 1, 1);
    if (l.bias_gradient) add_column_sums(c.stream, l.bias_gradient, dy[j]);
    if (l.trained_bias) bias_backward(c, group, l, dy[j]);
    if (l.lora) up_projection_backward(c, l, columns_of(l, t), dz, columns_of(l, u));
  }
  if (group.adapted()) down_projection_backward(c, group, dx, t, x);
}

}  // namespace lorashard
