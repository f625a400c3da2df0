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
  return {c.dropout.seed, m.site, c.dropout.row_keys, m.a.local_cols.begin, c.dropout.rate};
}

// u = dropout(x) A^T of the adapted modules.
void down_project(const LinearContext& c, const LinearGroup& group, Matrix u, ConstMatrix x) {
  const ProfileSpan span("lora", "lora");
  if (c.dropout.rate == 0) {
    matmul_nt(c.stream, u, x, stacked_a(group, c.values));
    return;
  }
  int64_t column = 0;
  for (const Linear& l : group.linears) {
    if (!l.lora) continue;
    lora_dropout_forward(c.stream, u.col_range(column, l.lora->lora_rank), x,
                         Factors::local_a(*l.lora, c.values), mask_of(c, *l.lora));
    column += l.lora->lora_rank;
  }
}

// y += scaling u B^T.
void add_up_projection(const LinearContext& c, const LoraModule& m, Matrix y, ConstMatrix u) {
  const ProfileSpan span("lora", "lora");
  matmul_nt(c.stream, y, u, Factors::local_b(m, c.values), m.scaling, 1);
}

// dB += scaling dy^T u;  t = scaling dy B.
void up_projection_backward(const LinearContext& c, const LoraModule& m, Matrix t, ConstMatrix dy,
                            ConstMatrix u) {
  const ProfileSpan span("lora", "lora");
  matmul_tn(c.stream, Factors::local_b(m, c.gradients), dy, u, m.scaling, 1);
  matmul_nn(c.stream, t, dy, Factors::local_b(m, c.values), m.scaling, 0);
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
  int64_t column = 0;
  for (const Linear& l : group.linears) {
    if (!l.lora) continue;
    const LoraModule& m = *l.lora;
    const ConstMatrix t_j = t.col_range(column, m.lora_rank);
    lora_dropout_wgrad(c.stream, Factors::local_a(m, c.gradients), t_j, x, mask_of(c, m));
    if (dx) lora_dropout_dgrad(c.stream, dx, t_j, Factors::local_a(m, c.values), mask_of(c, m));
    column += m.lora_rank;
  }
}

// db += the sums of dy's columns. Behind the all-reduce of a row-parallel group every rank has the
// same dy, and adds the sums of its share.
void bias_backward(const LinearContext& c, const LinearGroup& group, const AdapterTensor& bias,
                   ConstMatrix dy) {
  if (!group.row_parallel) {
    add_column_sums(c.stream, local_block(bias, c.gradients), dy);
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
    add_up_projection(c, m, y, u);
    scale_columns(c.stream, y, y, l.dora.scale);
    if (bias) add_bias(c.stream, y, bias);
    return;
  }
  const Matrix z = c.z.block(0, y.rows, 0, y.cols);
  frozen_forward(c.stream, y, x, l.weight, bias);
  frozen_forward(c.stream, z, dora_input(c, m, x), l.weight);
  scale_columns(c.stream, y, z, l.dora.excess, true);
  matmul_nt(c.stream, z, u, Factors::local_b(m, c.values), m.scaling, 0);
  scale_columns(c.stream, y, z, l.dora.scale, true);
}

// The magnitudes' gradient, dm += dy z / norm; dx = (or, not `first`, +=) what W gives. Returns the
// gradient of z, in scratch: what LoRA's part goes on with.
ConstMatrix dora_backward(const LinearContext& c, const Linear& l, Matrix dx, ConstMatrix dy,
                          ConstMatrix x, ConstMatrix u, bool first) {
  const LoraModule& m = *l.lora;
  const Matrix z = c.z.block(0, dy.rows, 0, dy.cols);
  frozen_forward(c.stream, z, dora_input(c, m, x), l.weight);
  add_up_projection(c, m, z, u);
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
  int64_t column = 0;
  for (size_t j = 0; j < group.linears.size(); ++j) {
    const Linear& l = group.linears[j];
    const ConstMatrix bias = group.row_parallel ? ConstMatrix{} : l.bias;
    const int64_t lora_rank = adapted && l.lora ? l.lora->lora_rank : 0;
    const ConstMatrix u_j = u.col_range(column, lora_rank);
    column += lora_rank;
    if (adapted && l.dora) {
      dora_forward(c, l, y[j], x, u_j, bias);
      continue;
    }
    frozen_forward(c.stream, y[j], x, l.weight, bias);
    if (adapted && l.lora) add_up_projection(c, *l.lora, y[j], u_j);
  }
}

void linear_group_backward(const LinearContext& c, const LinearGroup& group, Matrix dx,
                           std::span<const ConstMatrix> dy, ConstMatrix x, ConstMatrix u) {
  const Matrix t = group.adapted() ? c.t.block(0, x.rows, 0, group.lora_rank) : Matrix{};
  int64_t column = 0;
  for (size_t j = 0; j < group.linears.size(); ++j) {
    const Linear& l = group.linears[j];
    const int64_t lora_rank = l.lora ? l.lora->lora_rank : 0;
    ConstMatrix dz = dy[j];
    if (l.dora) {
      dz = dora_backward(c, l, dx, dy[j], x, u.col_range(column, lora_rank), j == 0);
    } else if (dx) {
      frozen_backward(c.stream, dx, dy[j], l.weight, j == 0 ? 0 : 1);
    }
    if (l.trained_bias) bias_backward(c, group, *l.trained_bias, dy[j]);
    if (!l.lora) continue;
    up_projection_backward(c, *l.lora, t.col_range(column, lora_rank), dz,
                           u.col_range(column, lora_rank));
    column += lora_rank;
  }
  if (group.adapted()) down_projection_backward(c, group, dx, t, x);
}

}  // namespace lorashard
