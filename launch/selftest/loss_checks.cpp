// The loss, the optimizer, and the sums of the gradient's norm.
#include <algorithm>
#include <cmath>

#include "kernels/adamw.h"
#include "kernels/cross_entropy.h"
#include "kernels/preference.h"
#include "launch/selftest/kernel_checks.h"
#include "launch/selftest/operand.h"

namespace lorashard::selftest {
namespace {

using Parts = std::vector<Part>;

constexpr int64_t kRows = 5, kFirst = 20;
// Inside and outside of a slice that begins at kFirst.
const std::vector<int32_t> kLabels{20, 3, 25, 21, 5000};

Parts statistics(Stream& s, DType type) {
  Parts parts;
  for (const int64_t width : {37, 256}) {
    Operand stats(s, kRows, 3, DType::F32, 1), logits(s, kRows, width, type, 2, 3);
    Numbers<int32_t> labels(s, kLabels);
    cross_entropy_stats(s, stats, logits, labels.device(), kFirst);
    parts.push_back(stats.against([&, n = width](int64_t i, int64_t j) {
      double top = -1e300, sum = 0;
      for (int64_t c = 0; c < n; ++c) top = std::max(top, logits(i, c));
      for (int64_t c = 0; c < n; ++c) sum += std::exp(logits(i, c) - top);
      const int64_t label = labels[i] - kFirst;
      return j == 0 ? top : j == 1 ? sum : label >= 0 && label < n ? logits(i, label) : 0;
    }));
  }
  return parts;
}

Parts loss_gradient(Stream& s, DType type) {
  Parts parts;
  for (const int64_t width : {37, 256}) {
    Operand logits(s, kRows, width, type, 2, 3), lse(s, 1, kRows, DType::F32, 3);
    lse.fill([](int64_t, int64_t i) { return 3 + double(i) / 4; });
    Numbers<int32_t> labels(s, kLabels);
    cross_entropy_gradient(s, logits, lse.floats(), labels.device(), kFirst, 0.25f);
    parts.push_back(logits.against([&](int64_t i, int64_t j) {
      return 0.25 * (std::exp(logits(i, j) - lse(0, i)) - (labels[i] - kFirst == j ? 1 : 0));
    }));
  }
  return parts;
}

Parts losses_joined(Stream& s) {
  constexpr int kRanks = 3;
  Operand lse(s, 1, kRows, DType::F32, 1), stats(s, kRanks * kRows, 3, DType::F32, 2);
  stats.fill([&](int64_t i, int64_t j) {
    return j == 0 ? double(i % 7) : j == 1 ? 1 + double(i) : i < kRows ? 0.5 * double(i) : 0;
  });
  Numbers<double> loss(s, {10.0});
  cross_entropy_combine(s, lse.floats(), loss.device(), stats, kRanks);
  const auto want = [&](int64_t, int64_t i) {
    double top = -1e300, sum = 0;
    for (int r = 0; r < kRanks; ++r) top = std::max(top, stats(r * kRows + i, 0));
    for (int r = 0; r < kRanks; ++r)
      sum += stats(r * kRows + i, 1) * std::exp(stats(r * kRows + i, 0) - top);
    return top + std::log(sum);
  };
  double sum = 10;
  for (int64_t i = 0; i < kRows; ++i)
    sum += want(0, i) - stats(i, 2) - stats(kRows + i, 2) - stats(2 * kRows + i, 2);
  return {lse.against(want), {host_copy(s, loss.device(), 1), {sum}}};
}

// Two pairs, of 1 to 300 rows a sequence.
const std::vector<int32_t> kPairRows{0, 300, 307, 308, 350};
const std::vector<double> kReference{-150, -4, -1.5, -20};

std::vector<double> pair_losses() {
  std::vector<double> losses;
  for (int32_t r = 0; r < kPairRows.back(); ++r) losses.push_back(0.25 + double(r % 8) / 16);
  return losses;
}
std::vector<double> pair_logps() {
  const std::vector<double> losses = pair_losses();
  std::vector<double> logps(4, 0.0);
  for (size_t s = 0; s < 4; ++s)
    for (int32_t r = kPairRows[s]; r < kPairRows[s + 1]; ++r) logps[s] -= losses[size_t(r)];
  return logps;
}

Parts log_probabilities(Stream& s) {
  Numbers<double> losses(s, pair_losses()), logps(s, std::vector<double>(4, 1.0));
  Numbers<int32_t> rows(s, kPairRows);
  sequence_logps(s, logps.device(), losses.device(), rows.device(), 4);
  return {{host_copy(s, logps.device(), 4), pair_logps()}};
}

Parts pairs(Stream& s) {
  const double beta = 0.2;
  const std::vector<double> logps = pair_logps();
  Numbers<double> policy(s, logps), reference(s, kReference),
      totals(s, std::vector<double>(6, 1.0));
  Numbers<int32_t> rows(s, kPairRows);
  Operand factors(s, 1, kPairRows.back(), DType::F32, 1);
  preference_loss(s, factors.floats(), reinterpret_cast<LossTotals*>(totals.device()),
                  policy.device(), reference.device(), rows.device(), 2, beta);
  std::vector<double> want(6, 1.0);
  double slope[2] = {};
  for (size_t p = 0; p < 2; ++p) {
    const double chosen = beta * (logps[2 * p] - kReference[2 * p]);
    const double rejected = beta * (logps[2 * p + 1] - kReference[2 * p + 1]);
    slope[p] = beta / (1 + std::exp(chosen - rejected));
    want[0] += std::log(1 + std::exp(rejected - chosen));
    want[1] += chosen;
    want[2] += rejected;
    want[3] += chosen > rejected;
    want[4] += logps[2 * p];
    want[5] += logps[2 * p + 1];
  }
  return {{host_copy(s, totals.device(), 6), want}, factors.against([&](int64_t, int64_t r) {
            const double f = slope[r < kPairRows[2] ? 0 : 1];
            return r < kPairRows[1] || (r >= kPairRows[2] && r < kPairRows[3]) ? f : -f;
          })};
}

Parts optimizer_step(Stream& s) {
  Parts parts;
  for (const int64_t n : {1, 37, 1000}) {
    Operand p(s, 1, n, DType::F32, 1), m(s, 1, n, DType::F32, 2), v(s, 1, n, DType::F32, 3),
        g(s, 1, n, DType::F32, 4);
    v.fill([](int64_t, int64_t j) { return 0.1 + double(j % 5); });
    const AdamWStep step{.learning_rate = 0.1f,
                         .beta1 = 0.9f,
                         .beta2 = 0.99f,
                         .epsilon = 1e-6f,
                         .weight_decay = 0.1f,
                         .step = 3,
                         .gradient_scale = 0.5f};
    adamw(s, p.floats(), m.floats(), v.floats(), g.floats(), n, step);
    const double b1 = step.beta1, b2 = step.beta2, lr = step.learning_rate;
    const auto m_new = [&](int64_t i, int64_t j) { return b1 * m(i, j) + (1 - b1) * g(i, j) / 2; };
    const auto v_new = [&](int64_t i, int64_t j) {
      return b2 * v(i, j) + (1 - b2) * g(i, j) * g(i, j) / 4;
    };
    parts.push_back(m.against(m_new));
    parts.push_back(v.against(v_new));
    parts.push_back(p.against([&](int64_t i, int64_t j) {
      const double mean = m_new(i, j) / (1 - std::pow(b1, 3)),
                   square = v_new(i, j) / (1 - std::pow(b2, 3));
      return p(i, j) * (1 - lr * double(step.weight_decay)) -
             lr * mean / (std::sqrt(square) + double(step.epsilon));
    }));
  }
  return parts;
}

Parts squares(Stream& s) {
  Parts parts;
  for (const int64_t n : {1, 37, 5000}) {
    Operand x(s, 1, n, DType::F32, 1);
    Numbers<double> sum(s, {-1.0});
    sum_of_squares(s, sum.device(), x.floats(), n);
    double want = 0;
    for (int64_t j = 0; j < n; ++j) want += x(0, j) * x(0, j);
    parts.push_back({host_copy(s, sum.device(), 1), {want}});
  }
  return parts;
}

Parts split(Stream& s) {
  const double value = 1234.5678901234567;
  Numbers<double> x(s, {value});
  Numbers<float> high(s, {0.0f}), low(s, {0.0f});
  split_double(s, high.device(), low.device(), x.device());
  const double h = host_copy(s, high.device(), 1)[0], l = host_copy(s, low.device(), 1)[0];
  return {{{h, l}, {double(float(value)), double(float(value - double(float(value))))}}};
}

}  // namespace

void add_loss_checks(std::vector<KernelCheck>& checks) {
  for (DType type : {DType::F32, DType::BF16}) {
    checks.push_back(
        {"cross_entropy_stats", type, 5e-6, [type](Stream& s) { return statistics(s, type); }});
    checks.push_back({"cross_entropy_gradient", type, rounded_once(type),
                      [type](Stream& s) { return loss_gradient(s, type); }});
  }
  checks.push_back({"cross_entropy_combine", DType::F32, 2e-6, losses_joined});
  checks.push_back({"sequence_logps", DType::F32, 1e-12, log_probabilities});
  checks.push_back({"preference_loss", DType::F32, 1e-6, pairs});
  checks.push_back({"adamw", DType::F32, 5e-6, optimizer_step});
  checks.push_back({"sum_of_squares", DType::F32, 1e-12, squares});
  checks.push_back({"split_double", DType::F32, 0, split});
}

std::vector<KernelCheck> kernel_checks() {
  std::vector<KernelCheck> checks;
  add_row_checks(checks);
  add_norm_checks(checks);
  add_gemm_checks(checks);
  add_attention_checks(checks);
  add_loss_checks(checks);
  return checks;
}

}  // namespace lorashard::selftest
