#include "kernels/attention.h"

#include "tests/kernels/attention_problem.h"

namespace lorashard {
namespace {

using Case = AttentionCase;
using Problem = AttentionProblem;

// Calls f(head, kv head, query row, first key row, end key row) for every query row.
void for_queries(const Case& c,
                 const std::function<void(int64_t, int64_t, int64_t, int64_t, int64_t)>& f) {
  const auto q = offsets(c.queries), k = offsets(c.keys);
  for (size_t s = 0; s < c.queries.size(); ++s)
    for (int64_t i = 0; i < c.queries[s]; ++i)
      for (int64_t h = 0; h < c.heads; ++h) {
        const int64_t position = c.keys[s] - c.queries[s] + i;
        const int64_t first = c.window ? std::max<int64_t>(0, position - c.window + 1) : 0;
        f(h, (c.group_offset + h) / c.group, q[s] + i, k[s] + first, k[s] + position + 1);
      }
}

using Table = std::vector<std::vector<double>>;
Table table(int64_t rows, int64_t cols) {
  return Table(size_t(rows), std::vector<double>(size_t(cols)));
}

struct Reference {
  Table o, lse, dq, dk, dv;
};

// Attention and its gradient for d_o, straight from the definition in double.
Reference reference(const Case& c, double scale, const HostMatrix& q, const HostMatrix& k,
                    const HostMatrix& v, const HostMatrix& g) {
  const int64_t d = c.head_dim;
  Reference r{table(q.rows, q.cols), table(q.rows, c.heads), table(q.rows, q.cols),
              table(k.rows, k.cols), table(k.rows, k.cols)};
  for_queries(c, [&](int64_t h, int64_t kv, int64_t t, int64_t first, int64_t end) {
    std::vector<double> p(size_t(end - first));
    double top = -1e300, sum = 0;
    for (int64_t j = first; j < end; ++j) {
      double s = 0;
      for (int64_t x = 0; x < d; ++x) s += q(t, h * d + x) * k(j, kv * d + x);
      p[size_t(j - first)] = s * scale;
      top = std::max(top, s * scale);
    }
    for (double& x : p) sum += x = std::exp(x - top);
    for (double& x : p) x /= sum;
    r.lse[size_t(t)][size_t(h)] = top + std::log(sum);
    double delta = 0;
    for (int64_t x = 0; x < d; ++x) {
      double o = 0;
      for (int64_t j = first; j < end; ++j) o += p[size_t(j - first)] * v(j, kv * d + x);
      r.o[size_t(t)][size_t(h * d + x)] = o;
      delta += o * g(t, h * d + x);
    }
    for (int64_t j = first; j < end; ++j) {
      double dp = 0;
      for (int64_t x = 0; x < d; ++x) dp += g(t, h * d + x) * v(j, kv * d + x);
      const double w = p[size_t(j - first)], ds = w * (dp - delta) * scale;
      for (int64_t x = 0; x < d; ++x) {
        r.dv[size_t(j)][size_t(kv * d + x)] += w * g(t, h * d + x);
        r.dk[size_t(j)][size_t(kv * d + x)] += ds * q(t, h * d + x);
        r.dq[size_t(t)][size_t(h * d + x)] += ds * k(j, kv * d + x);
      }
    }
  });
  return r;
}

class Attention : public testing::TestWithParam<std::tuple<Case, DType>> {};

TEST_P(Attention, AgreesWithDefinition) {
  const auto& [c, type] = GetParam();
  for (int64_t pad : {0, 6}) {
    Problem run(c, type, pad);
    run.compute_on_cpu(2);
    const Reference want = reference(c, run.shape.scale, run.q, run.k, run.v, run.g);
    // fp32: sums of up to 300 products of unit normals, exp within 2 ulp. bf16: the outputs are
    // rounded once, and the backward pass starts from an o rounded to bf16, which shifts delta.
    const double eps = rounding(type), small = type == DType::F32 ? 2e-5 : 0.02;
    const auto of = [](const Table& t) {
      return [&t](int64_t i, int64_t j) { return t[size_t(i)][size_t(j)]; };
    };
    expect_near(run.o, of(want.o), 1e-5, eps + 1e-5);
    expect_near(run.lse, of(want.lse), 1e-5, 1e-6);
    expect_near(run.dq, of(want.dq), small, eps + 1e-5);
    expect_near(run.dk, of(want.dk), small * std::sqrt(double(c.group)), eps + 1e-5);
    expect_near(run.dv, of(want.dv), 2e-5, eps + 1e-5);
    for (const HostMatrix* m : {&run.o, &run.lse, &run.dq, &run.dk, &run.dv})
      EXPECT_TRUE(m->gaps_untouched());
  }
}

// Thread counts choose how the work is split; results must not depend on it.
TEST_P(Attention, SameBitsForAnyThreads) {
  const auto& [c, type] = GetParam();
  Problem one(c, type, 0);
  one.compute_on_cpu(1);
  for (int threads : {2, 3, 16}) {
    Problem many(c, type, 0);
    many.compute_on_cpu(threads);
    EXPECT_EQ(one.o, many.o);
    EXPECT_EQ(one.lse, many.lse);
    EXPECT_EQ(one.dq, many.dq) << threads;
    EXPECT_EQ(one.dk, many.dk) << threads;
    EXPECT_EQ(one.dv, many.dv) << threads;
  }
}

const Case kCases[] = {
    {1, 1, 2, 1, 0, 0, {1}, {1}},
    {1, 1, 16, 1, 0, 0, {5}, {5}},
    {4, 2, 64, 2, 0, 0, {130, 3, 64}, {130, 3, 64}},
    {9, 3, 64, 3, 0, 0, {200}, {200}},
    {3, 2, 32, 3, 1, 0, {70, 20}, {70, 20}},  // heads 1, 2 of group 0 and head 0 of group 1
    {2, 1, 80, 4, 1, 0, {33}, {33}},          // the middle of one group
    {2, 2, 72, 1, 0, 0, {65}, {65}},          // no multiple of a vector
    {2, 1, 6, 2, 0, 0, {17, 1, 40}, {17, 1, 40}},
    {2, 1, 256, 2, 0, 0, {40}, {40}},
    {2, 1, 128, 2, 0, 48, {300}, {300}},        // window
    {2, 2, 32, 1, 0, 1, {20}, {20}},            // each query sees only itself
    {4, 2, 64, 2, 0, 0, {1, 1}, {200, 1}},      // decoding with a cache
    {4, 2, 64, 2, 0, 30, {7, 66}, {150, 129}},  // continued prefill with a window
    {2, 1, 16, 2, 0, 0, {0, 4}, {3, 4}},        // a sequence without queries
};

INSTANTIATE_TEST_SUITE_P(Shapes, Attention,
                         testing::Combine(testing::ValuesIn(kCases),
                                          testing::Values(DType::F32, DType::BF16)));

TEST(AttentionForward, NeedsNoLse) {
  const Case c{2, 1, 16, 2, 0, 0, {9}, {9}};
  Problem with(c, DType::F32, 0), without(c, DType::F32, 0);
  with.compute_on_cpu(1);
  Stream stream(1);
  const auto qo = offsets(c.queries);
  attention_forward(stream, without.o, {}, without.q, without.k, without.v, {qo, qo},
                    without.shape);
  EXPECT_EQ(with.o, without.o);
}

// Large scores neither overflow nor lose the maximum.
TEST(AttentionForward, IsStableForLargeScores) {
  const Case c{1, 1, 16, 1, 0, 0, {100}, {100}};
  Problem run(c, DType::F32, 0);
  run.q.randomize(5, 60), run.k.randomize(6, 60);
  run.compute_on_cpu(2);
  const Reference want = reference(c, run.shape.scale, run.q, run.k, run.v, run.g);
  // Scores reach 1e4 with an fp32 step near 1e-3, which is then the relative error of p.
  expect_near(
      run.o, [&](int64_t i, int64_t j) { return want.o[size_t(i)][size_t(j)]; }, 2e-2, 0);
}

}  // namespace
}  // namespace lorashard
