// One call of attention, forward and backward, with random operands: what its tests compare.
#pragma once

#include <cmath>
#include <ostream>
#include <vector>

#include "kernels/attention.h"
#include "tests/kernels/reference.h"

namespace lorashard {

struct AttentionCase {
  int64_t heads, kv_heads, head_dim, group, group_offset, window;
  std::vector<int32_t> queries, keys;  // lengths by sequence
};

inline void PrintTo(const AttentionCase& c, std::ostream* out) {
  *out << "heads " << c.heads << " kv " << c.kv_heads << " dim " << c.head_dim << " group "
       << c.group << "+" << c.group_offset << " window " << c.window << " lengths";
  for (size_t i = 0; i < c.queries.size(); ++i) *out << " " << c.queries[i] << "/" << c.keys[i];
}

inline std::vector<int32_t> offsets(const std::vector<int32_t>& lengths) {
  std::vector<int32_t> o{0};
  for (int32_t n : lengths) o.push_back(o.back() + n);
  return o;
}

struct AttentionProblem {
  HostMatrix q, k, v, g, o, lse, dq, dk, dv;
  AttentionShape shape;
  std::vector<int32_t> q_offsets, kv_offsets;

  AttentionProblem(const AttentionCase& c, DType t, int64_t pad)
      : q(offsets(c.queries).back(), c.heads * c.head_dim, t, pad),
        k(offsets(c.keys).back(), c.kv_heads * c.head_dim, t, pad),
        v(k),
        g(q),
        o(q),
        lse(q.rows, c.heads, DType::F32, pad),
        dq(q),
        dk(k),
        dv(k),
        shape{.heads = c.heads,
              .kv_heads = c.kv_heads,
              .head_dim = c.head_dim,
              .group = c.group,
              .group_offset = c.group_offset,
              .scale = float(1 / std::sqrt(double(c.head_dim))),
              .window = c.window},
        q_offsets(offsets(c.queries)),
        kv_offsets(offsets(c.keys)) {
    q.randomize(1), k.randomize(2), v.randomize(3), g.randomize(4);
    for (HostMatrix* m : {&o, &lse, &dq, &dk, &dv}) m->fill(NAN);  // outputs are '='
  }

  void compute_on_cpu(int threads) {
    Stream stream(threads);
    const Sequences sequences{q_offsets, kv_offsets};
    attention_forward(stream, o, lse, q, k, v, sequences, shape);
    attention_backward(stream, dq, dk, dv, g, q, k, v, o, lse, sequences, shape);
  }

  std::vector<const HostMatrix*> outputs() const { return {&o, &lse, &dq, &dk, &dv}; }
};

}  // namespace lorashard
