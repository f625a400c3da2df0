// Attention, forward and backward.
#include <algorithm>
#include <cmath>

#include "kernels/attention.h"
#include "launch/selftest/kernel_checks.h"
#include "launch/selftest/operand.h"

namespace lorashard::selftest {
namespace {

using Parts = std::vector<Part>;
using Table = std::vector<std::vector<double>>;

struct Case {
  int64_t heads, kv_heads, head_dim, window;
};
// Grouped and plain heads, packed sequences, a sliding window.
constexpr Case kCases[] = {{4, 2, 64, 0}, {2, 2, 32, 0}, {3, 1, 128, 6}};
constexpr int32_t kLengths[] = {5, 19, 1};

struct Reference {
  Table o, lse, dq, dk, dv;
};

// The definition: o = softmax(scale q k^T) v over the keys that a query sees, and its gradient.
Reference define(const Case& c, double scale, const std::vector<int32_t>& offsets, const Operand& q,
                 const Operand& k, const Operand& v, const Operand& d_o) {
  const auto rows = size_t(offsets.back());
  const auto table = [&](int64_t cols) {
    return Table(rows, std::vector<double>(size_t(cols), 0.0));
  };
  const int64_t d = c.head_dim;
  Reference r{table(c.heads * d), table(c.heads), table(c.heads * d), table(c.kv_heads * d),
              table(c.kv_heads * d)};
  for (size_t s = 0; s + 1 < offsets.size(); ++s)
    for (int64_t i = offsets[s]; i < offsets[s + 1]; ++i)
      for (int64_t h = 0; h < c.heads; ++h) {
        const int64_t qc = h * d, kc = h / (c.heads / c.kv_heads) * d;
        const int64_t first =
            c.window > 0 ? std::max<int64_t>(offsets[s], i - c.window + 1) : offsets[s];
        const auto dot = [&](const Operand& a, int64_t ac, const Operand& b, int64_t j) {
          double sum = 0;
          for (int64_t e = 0; e < d; ++e) sum += a(i, ac + e) * b(j, kc + e);
          return sum;
        };
        std::vector<double> p;
        double top = -1e300, sum = 0, delta = 0;
        for (int64_t j = first; j <= i; ++j) {
          p.push_back(scale * dot(q, qc, k, j));
          top = std::max(top, p.back());
        }
        for (double& x : p) sum += x = std::exp(x - top);
        for (double& x : p) x /= sum;
        const auto row = size_t(i);
        r.lse[row][size_t(h)] = top + std::log(sum);
        for (int64_t j = first; j <= i; ++j) {
          const double w = p[size_t(j - first)];
          delta += w * dot(d_o, qc, v, j);
          for (int64_t e = 0; e < d; ++e) r.o[row][size_t(qc + e)] += w * v(j, kc + e);
        }
        for (int64_t j = first; j <= i; ++j) {
          const double w = p[size_t(j - first)], ds = w * (dot(d_o, qc, v, j) - delta) * scale;
          for (int64_t e = 0; e < d; ++e) {
            r.dq[row][size_t(qc + e)] += ds * k(j, kc + e);
            r.dk[size_t(j)][size_t(kc + e)] += ds * q(i, qc + e);
            r.dv[size_t(j)][size_t(kc + e)] += w * d_o(i, qc + e);
          }
        }
      }
  return r;
}

Parts attended(Stream& s, DType type, bool backward) {
  Parts parts;
  for (const Case& c : kCases) {
    std::vector<int32_t> lengths{0};
    for (const int32_t n : kLengths) lengths.push_back(lengths.back() + n);
    const int64_t t = lengths.back(), wide = c.heads * c.head_dim, narrow = c.kv_heads * c.head_dim;
    Numbers<int32_t> offsets(s, lengths);
    Operand q(s, t, wide, type, 1), k(s, t, narrow, type, 2), v(s, t, narrow, type, 3),
        o(s, t, wide, type, 4), lse(s, t, c.heads, DType::F32, 5), d_o(s, t, wide, type, 6),
        dq(s, t, wide, type, 7), dk(s, t, narrow, type, 8), dv(s, t, narrow, type, 9);
    AttentionShape shape;
    shape.heads = c.heads;
    shape.kv_heads = c.kv_heads;
    shape.head_dim = c.head_dim;
    shape.group = c.heads / c.kv_heads;
    shape.scale = float(1 / std::sqrt(double(c.head_dim)));
    shape.window = c.window;
    const Sequences sequences{offsets.host(), offsets.host(), offsets.device(), offsets.device()};
    attention_forward(s, o, lse, q, k, v, sequences, shape);
    if (backward) attention_backward(s, dq, dk, dv, d_o, q, k, v, o, lse, sequences, shape);
    const Reference want = define(c, shape.scale, offsets.host(), q, k, v, d_o);
    const auto compare = [&](const Operand& got, const Table& table) {
      parts.push_back(
          got.against([&](int64_t i, int64_t j) { return table[size_t(i)][size_t(j)]; }));
    };
    if (!backward) {
      compare(o, want.o);
      compare(lse, want.lse);
    } else {
      compare(dq, want.dq);
      compare(dk, want.dk);
      compare(dv, want.dv);
    }
  }
  return parts;
}

}  // namespace

void add_attention_checks(std::vector<KernelCheck>& checks) {
  for (const bool backward : {false, true})
    for (DType type : {DType::F32, DType::BF16}) {
      // In bf16 the probabilities and their gradient are rounded before the tensor cores sum them.
      // bf16 gradients pass through scores, probabilities and o, each rounded to 2^-9 of its value;
      // on these shapes they meet 2^-6 (measured 0.018), and a wrong term is of order 1.
      const double tolerance = type == DType::F32 ? 1e-5 : backward ? 0x1p-5 : 0x1p-7;
      checks.push_back({backward ? "attention_backward" : "attention_forward", type, tolerance,
                        [=](Stream& s) { return attended(s, type, backward); }});
    }
}

}  // namespace lorashard::selftest
