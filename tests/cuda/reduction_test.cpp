// Device kernels that reduce over rows or whole buffers, against their CPU references.
#include "kernels/adamw.h"
#include "kernels/cross_entropy.h"
#include "kernels/preference.h"
#include "tests/cuda/device.h"

namespace lorashard {
namespace {

const DType F = DType::F32, B = DType::BF16, H = DType::F16;

class ReductionKernels : public DeviceTest {};
INSTANTIATE_TEST_SUITE_P(Orders, ReductionKernels, all_orders(), order_name);

// ---- cross entropy

TEST_P(ReductionKernels, CrossEntropy) {
  for (const Shape& s : shapes())
    for (DType type : {F, B}) {
      SCOPED_TRACE(describe(s));
      HostMatrix logits = random_matrix(s, type, 1, 4), want_stats(s.rows, 3, F, 2);
      const int64_t first = 1000;  // this rank's slice starts here
      std::vector<int32_t> labels;
      for (int64_t r = 0; r < s.rows; ++r)
        labels.push_back(int32_t(r % 3 == 2 ? r % 1000 : first + r * 5 % s.cols));
      DeviceMatrix d_logits(device(), logits, s.shift), stats(device(), want_stats);
      DeviceArray<int32_t> d_labels(device(), labels);
      cross_entropy_stats(cpu, want_stats, logits, labels.data(), first);
      cross_entropy_stats(device(), stats, d_logits, d_labels.data(), first);
      const HostMatrix got = stats.host();
      EXPECT_TRUE(got.gaps_untouched());
      std::vector<float> lse;
      for (int64_t r = 0; r < s.rows; ++r) {
        ASSERT_EQ(got(r, 0), want_stats(r, 0));
        // Positive terms in another order, each rescaled a few times.
        ASSERT_NEAR(got(r, 1), want_stats(r, 1), 2e-6 * want_stats(r, 1));
        ASSERT_EQ(got(r, 2), want_stats(r, 2));
        lse.push_back(float(want_stats(r, 0) + std::log(want_stats(r, 1) + 1)));
      }
      DeviceArray<float> d_lse(device(), lse);
      std::vector<float> factors;
      for (int64_t r = 0; r < s.rows; ++r) factors.push_back(r % 2 == 0 ? 0.5f : -0.75f);
      DeviceArray<float> d_factors(device(), factors);
      const bool own = s.shift == 0;  // a factor of each row's own
      cross_entropy_gradient(cpu, logits, lse.data(), labels.data(), first, 0.25f,
                             own ? factors.data() : nullptr);
      cross_entropy_gradient(device(), d_logits, d_lse.data(), d_labels.data(), first, 0.25f,
                             own ? d_factors.data() : nullptr);
      // The exponent carries a rounding of its own size, at most 30.
      expect_matches(d_logits.host(), logits, 2e-7, neighbour(type) + 4e-6);
    }
}

// -inf logits (masked tokens) count as nothing, whichever thread meets them; NaN reaches the sum.
TEST_P(ReductionKernels, CrossEntropyOfSpecialLogits) {
  HostMatrix logits(3, 200, F);
  logits.randomize(1).set(0, 0, NAN);
  for (int64_t j = 0; j < 199; ++j) logits.set(1, j, -INFINITY);
  for (int64_t j = 0; j < 100; ++j) logits.set(2, j, -INFINITY);
  double top = -INFINITY, sum = 0;
  for (int64_t j = 100; j < 200; ++j) top = std::max(top, logits(2, j));
  for (int64_t j = 100; j < 200; ++j) sum += std::exp(logits(2, j) - top);
  DeviceMatrix d_logits(device(), logits), stats(device(), HostMatrix(3, 3, F));
  DeviceArray<int32_t> labels(device(), {5, 199, 150});
  cross_entropy_stats(device(), stats, d_logits, labels.data(), 0);
  const HostMatrix got = stats.host();
  EXPECT_TRUE(std::isnan(got(0, 1)));
  EXPECT_EQ(got(1, 0), logits(1, 199));
  EXPECT_EQ(got(1, 1), 1);
  EXPECT_EQ(got(2, 0), top);
  EXPECT_NEAR(got(2, 1), sum, 2e-6 * sum);
}

TEST_P(ReductionKernels, CrossEntropyCombine) {
  for (int64_t rows : {1, 3, 256, 700})
    for (int ranks : {1, 2, 5}) {
      SCOPED_TRACE(testing::Message() << rows << " rows of " << ranks);
      HostMatrix stats(rows * ranks, 3, F);
      stats.randomize(1, 5);
      for (int64_t r = 0; r < rows * ranks; ++r) stats.set(r, 1, 1 + std::abs(stats(r, 1)));
      std::vector<float> lse(static_cast<size_t>(rows));
      double loss = 1.25;  // grows
      DeviceMatrix d_stats(device(), stats);
      DeviceArray<float> d_lse(device(), std::vector<float>(lse.size(), NAN));
      DeviceArray<double> d_loss(device(), {loss});
      std::vector<double> losses(lse.size());
      DeviceArray<double> d_losses(device(), losses);
      cross_entropy_combine(cpu, lse.data(), &loss, stats, ranks, losses.data());
      cross_entropy_combine(device(), d_lse.data(), d_loss.data(), d_stats, ranks, d_losses.data());
      const std::vector<float> got = d_lse.host();
      // In double, in the same order: only exp and log may differ by an ulp.
      for (size_t r = 0; r < lse.size(); ++r) ASSERT_NEAR(got[r], lse[r], 1e-6 * std::abs(lse[r]));
      ASSERT_NEAR(d_loss.host()[0], loss, 1e-13 * double(rows) * std::abs(loss));
      const std::vector<double> got_losses = d_losses.host();
      for (size_t r = 0; r < losses.size(); ++r)
        ASSERT_NEAR(got_losses[r], losses[r], 1e-12 * (1 + std::abs(losses[r])));
    }
}

// ---- direct preference optimization

TEST_P(ReductionKernels, Preference) {
  constexpr int64_t kPairs = 5;
  std::vector<int32_t> rows{0};
  for (int64_t s = 0; s < 2 * kPairs; ++s)
    rows.push_back(rows.back() + int32_t(1 + s * s * 7 % 700));
  const auto count = size_t(rows.back());
  std::vector<double> losses(count), reference(2 * kPairs), policy(2 * kPairs);
  for (size_t r = 0; r < count; ++r) losses[r] = 0.25 + double(r * 37 % 101) / 64;
  std::vector<float> factors(count, NAN);
  sequence_logps(cpu, policy.data(), losses.data(), rows.data(), 2 * kPairs);
  for (size_t s = 0; s < policy.size(); ++s) reference[s] = policy[s] + double(s * 5 % 7) - 3;
  LossTotals totals{.loss = 1.25, .pairs = {}};
  DeviceArray<int32_t> d_rows(device(), rows);
  DeviceArray<double> d_losses(device(), losses), d_reference(device(), reference),
      d_policy(device(), std::vector<double>(policy.size(), NAN)),
      d_totals(device(), {1.25, 0, 0, 0, 0, 0});
  DeviceArray<float> d_factors(device(), factors);
  sequence_logps(device(), d_policy.data(), d_losses.data(), d_rows.data(), 2 * kPairs);
  const std::vector<double> got = d_policy.host();
  for (size_t s = 0; s < got.size(); ++s) ASSERT_NEAR(got[s], policy[s], -1e-13 * policy[s]);
  // From the same log-probabilities: of two sums in other orders the differences would tell.
  DeviceArray<double> same(device(), policy);
  preference_loss(cpu, factors.data(), &totals, policy.data(), reference.data(), rows.data(),
                  kPairs, 0.3);
  preference_loss(device(), d_factors.data(), reinterpret_cast<LossTotals*>(d_totals.data()),
                  same.data(), d_reference.data(), d_rows.data(), kPairs, 0.3);
  const std::vector<double> sums = d_totals.host();
  const double* want = &totals.loss;
  for (size_t i = 0; i < sums.size(); ++i)
    EXPECT_NEAR(sums[i], want[i], 1e-12 * (1 + std::abs(want[i])));
  const std::vector<float> got_factors = d_factors.host();
  for (size_t r = 0; r < count; ++r) ASSERT_NEAR(got_factors[r], factors[r], 1e-7) << r;
}

// ---- adamw

TEST_P(ReductionKernels, AdamW) {
  for (int64_t n : {1, 3, 4, 1000, 70001})
    for (int64_t shift : {0, 1}) {
      SCOPED_TRACE(testing::Message() << n << " from " << shift);
      HostMatrix p(1, n, F), m(1, n, F), v(1, n, F), g(1, n, F);
      p.randomize(1), m.randomize(2, 0.1), g.randomize(4, 0.1);
      v.randomize(3, 0.1);
      for (int64_t i = 0; i < n; ++i) v.set(0, i, v(0, i) * v(0, i));
      v.set(0, 0, 0), m.set(0, 0, 0), g.set(0, 0, 0);  // 0 / eps
      DeviceMatrix dp(device(), p, shift), dm(device(), m, shift), dv(device(), v, shift),
          dg(device(), g, shift);
      const auto at = [](Matrix a) { return static_cast<float*>(a.data); };
      for (int64_t step = 1; step <= 3; ++step) {
        const AdamWStep s{1e-2f, 0.9f, 0.999f, 1e-8f, 0.1f, step, 0.5f};
        adamw(cpu, at(p), at(m), at(v), at(g), n, s);
        adamw(device(), at(dp), at(dm), at(dv), at(dg), n, s);
      }
      // Three steps of a few roundings each; the CPU may keep products unrounded.
      expect_matches(dm.host(), m, 1e-8, 1e-6);
      expect_matches(dv.host(), v, 1e-10, 1e-6);
      expect_matches(dp.host(), p, 1e-6, 1e-6);
    }
}

TEST_P(ReductionKernels, SumOfSquares) {
  for (int64_t n : {0, 1, 5, 1023, 16384, 16385, 300001}) {
    SCOPED_TRACE(n);
    std::vector<float> x;
    std::mt19937 engine(7);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i <= n; ++i) x.push_back(normal(engine));
    double want = 0;
    sum_of_squares(cpu, &want, x.data(), n);
    DeviceArray<float> aligned(device(), x);
    DeviceArray<double> sum(device(), {NAN});
    sum_of_squares(device(), sum.data(), aligned.data(), n);
    const double got = sum.host()[0];
    EXPECT_NEAR(got, want, 1e-13 * want);
    // Where it lies does not change a bit, and it equals itself from run to run.
    x.insert(x.begin(), 100.0f);
    DeviceArray<float> shifted(device(), x);
    sum_of_squares(device(), sum.data(), shifted.data() + 1, n);
    EXPECT_EQ(sum.host()[0], got);
  }
}

TEST_P(ReductionKernels, SplitDouble) {
  const double x = 12345678.123456789;
  DeviceArray<double> d_x(device(), {x});
  DeviceArray<float> parts(device(), {0, 0});
  split_double(device(), parts.data(), parts.data() + 1, d_x.data());
  float high, low;
  split_double(cpu, &high, &low, &x);
  EXPECT_EQ(parts.host(), (std::vector<float>{high, low}));
}

}  // namespace
}  // namespace lorashard
