// The loss of direct preference optimization against its formula.
#include "kernels/preference.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace lorashard {
namespace {

// Sequences of 2, 3, 1 and 4 rows: two pairs.
const std::vector<int32_t> kRows{0, 2, 5, 6, 10};
const std::vector<double> kLosses{1, 2, 0.5, 0.25, 3, 7, 1, 1, 1, 0.125};

TEST(Preference, LogProbabilitiesAreSumsOfRows) {
  Stream stream(1);
  std::vector<double> logps(4, NAN);
  sequence_logps(stream, logps.data(), kLosses.data(), kRows.data(), 4);
  EXPECT_EQ(logps, (std::vector<double>{-3, -3.75, -7, -3.125}));
}

double loss(const std::vector<double>& policy, const std::vector<double>& reference, double beta) {
  double sum = 0;
  for (size_t p = 0; p < policy.size(); p += 2) {
    const double margin = beta * (policy[p] - reference[p] - (policy[p + 1] - reference[p + 1]));
    sum += -std::log(1 / (1 + std::exp(-margin)));
  }
  return sum;
}

TEST(Preference, LossRewardsAndFactorsAreThoseOfTheFormula) {
  Stream stream(1);
  const std::vector<double> policy{-3, -3.75, -7, -3.125}, reference{-4, -3, -6, -5};
  const double beta = 0.7;
  LossTotals totals{.loss = 10, .pairs = {.rewards_chosen = 1}};
  std::vector<float> factors(10, NAN);
  preference_loss(stream, factors.data(), &totals, policy.data(), reference.data(), kRows.data(), 2,
                  beta);
  EXPECT_NEAR(totals.loss, 10 + loss(policy, reference, beta), 1e-12);
  EXPECT_NEAR(totals.pairs.rewards_chosen, 1 + beta * (1 - 1), 1e-12);
  EXPECT_NEAR(totals.pairs.rewards_rejected, beta * (-0.75 + 1.875), 1e-12);
  EXPECT_EQ(totals.pairs.correct, 1);
  EXPECT_EQ(totals.pairs.logps_chosen, -10);
  EXPECT_EQ(totals.pairs.logps_rejected, -6.875);
  for (size_t s = 0; s < 4; ++s) {  // a row's loss lowers the log-probability of its sequence
    std::vector<double> up = policy, down = policy;
    up[s] += 1e-6;
    down[s] -= 1e-6;
    const double slope = (loss(down, reference, beta) - loss(up, reference, beta)) / 2e-6;
    for (int32_t r = kRows[s]; r < kRows[s + 1]; ++r) EXPECT_NEAR(factors[size_t(r)], slope, 1e-7);
  }
}

// Margins beyond what exp() takes: the loss is the margin itself, or nothing.
TEST(Preference, LargeMarginsStayFinite) {
  Stream stream(1);
  const std::vector<double> policy{0, 1e5, 1e5, 0}, reference(4, 0.0);
  LossTotals totals;
  std::vector<float> factors(10);
  preference_loss(stream, factors.data(), &totals, policy.data(), reference.data(), kRows.data(), 2,
                  1);
  EXPECT_EQ(totals.loss, 1e5);
  EXPECT_EQ(factors[0], 1);
  EXPECT_EQ(factors[2], -1);
  EXPECT_EQ(factors[5], 0);
}

}  // namespace
}  // namespace lorashard
