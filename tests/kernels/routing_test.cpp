// kernels/routing.h against its definition and finite differences.
#include "kernels/routing.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/float_types.h"

namespace lorashard {
namespace {

constexpr int64_t kTokens = 7, kExperts = 5, kChoices = 3;

struct Routed {
  std::vector<float> probabilities = std::vector<float>(kTokens * kExperts);
  std::vector<float> weights = std::vector<float>(kTokens * kChoices);
  std::vector<int32_t> experts = std::vector<int32_t>(kTokens * kChoices), order = experts,
                       places = experts, offsets = std::vector<int32_t>(kExperts + 1);
  Routing routing{matrix(probabilities.data(), kTokens, kExperts, DType::F32),
                  matrix(weights.data(), kTokens, kChoices, DType::F32),
                  matrix(experts.data(), kTokens, kChoices, DType::I32),
                  matrix(order.data(), kTokens, kChoices, DType::I32),
                  matrix(places.data(), kTokens, kChoices, DType::I32),
                  matrix(offsets.data(), 1, kExperts + 1, DType::I32)};
};

std::vector<float> values(int64_t n, float step = 0.7f) {
  std::vector<float> v(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) v[size_t(i)] = std::sin(step * float(i * i + 1));
  return v;
}

ConstMatrix view(const std::vector<float>& v, int64_t rows) {
  return const_matrix(v.data(), rows, int64_t(v.size()) / rows, DType::F32);
}
Matrix view(std::vector<float>& v, int64_t rows) {
  return matrix(v.data(), rows, int64_t(v.size()) / rows, DType::F32);
}

class Routes : public testing::TestWithParam<bool> {};

TEST_P(Routes, TheMostProbableExpertsWithTheirWeights) {
  Stream stream(2);
  Routed r;
  std::vector<float> logits = values(kTokens * kExperts);
  logits[1] = logits[3] = 5;  // equal: the lower number first
  route_forward(stream, r.routing, view(logits, kTokens), GetParam());
  for (int64_t t = 0; t < kTokens; ++t) {
    double sum = 0, chosen = 0;
    for (int64_t e = 0; e < kExperts; ++e) sum += std::exp(logits[size_t(t * kExperts + e)]);
    std::vector<int32_t> sorted(kExperts);
    std::iota(sorted.begin(), sorted.end(), 0);
    std::stable_sort(sorted.begin(), sorted.end(), [&](int32_t a, int32_t b) {
      return logits[size_t(t * kExperts + a)] > logits[size_t(t * kExperts + b)];
    });
    for (int64_t j = 0; j < kChoices; ++j)
      chosen += std::exp(logits[size_t(t * kExperts + sorted[size_t(j)])]) / sum;
    for (int64_t j = 0; j < kChoices; ++j) {
      const auto c = size_t(t * kChoices + j);
      EXPECT_EQ(r.experts[c], sorted[size_t(j)]);
      const double p = std::exp(logits[size_t(t * kExperts + r.experts[c])]) / sum;
      EXPECT_NEAR(r.weights[c], GetParam() ? p / chosen : p, 1e-6);
      // Choices stand by expert, and in their order within one.
      EXPECT_EQ(r.order[size_t(r.places[c])], int32_t(c));
      EXPECT_GE(r.places[c], r.offsets[size_t(r.experts[c])]);
      EXPECT_LT(r.places[c], r.offsets[size_t(r.experts[c]) + 1]);
    }
  }
  for (size_t p = 1; p < r.order.size(); ++p) {
    const int32_t before = r.order[p - 1], c = r.order[p];
    EXPECT_TRUE(r.experts[size_t(before)] < r.experts[size_t(c)] || before < c);
  }
}

TEST_P(Routes, GradientIsThatOfFiniteDifferences) {
  Stream stream(1);
  std::vector<float> logits = values(kTokens * kExperts);
  const std::vector<float> dw = values(kTokens * kChoices, 1.3f);
  const auto loss = [&] {
    Routed r;
    route_forward(stream, r.routing, view(logits, kTokens), GetParam());
    double sum = 0;
    for (size_t i = 0; i < dw.size(); ++i) sum += double(dw[i]) * r.weights[i];
    return sum;
  };
  Routed r;
  route_forward(stream, r.routing, view(logits, kTokens), GetParam());
  std::vector<float> d(logits.size());
  route_backward(stream, view(d, kTokens), view(dw, kTokens), r.routing, GetParam());
  for (size_t i = 0; i < logits.size(); ++i) {
    const float kept = logits[i];
    constexpr float kStep = 1e-2f;
    logits[i] = kept + kStep;
    const double up = loss();
    logits[i] = kept - kStep;
    EXPECT_NEAR((up - loss()) / (2 * kStep), d[i], 2e-4) << i;
    logits[i] = kept;
  }
}
INSTANTIATE_TEST_SUITE_P(Normalized, Routes, testing::Bool());

TEST(Choices, GoToTheirPlacesAndBack) {
  Stream stream(2);
  constexpr int64_t kCols = 6, kRows = kTokens * kChoices;
  Routed r;
  route_forward(stream, r.routing, view(values(kTokens * kExperts), kTokens), false);
  const std::vector<float> x = values(kTokens * kCols), g = values(kRows * kCols, 0.3f);
  std::vector<float> rows(kRows * kCols), weighed(rows), y(x), dx(rows), d_weights(kRows);
  gather_choices(stream, view(rows, kRows), view(x, kTokens), r.routing);
  weigh_choices(stream, view(weighed, kRows), view(rows, kRows), r.routing);
  sum_choices(stream, view(y, kTokens), view(weighed, kRows), r.routing, true);
  weigh_choices_backward(stream, view(d_weights, kTokens), view(dx, kRows), view(g, kRows),
                         view(rows, kRows), r.routing);
  for (int64_t t = 0; t < kTokens; ++t) {
    float total = 0;
    for (int64_t j = 0; j < kChoices; ++j) total += r.weights[size_t(t * kChoices + j)];
    for (int64_t i = 0; i < kCols; ++i)  // y starts as x
      EXPECT_NEAR(y[size_t(t * kCols + i)], x[size_t(t * kCols + i)] * (1 + total), 1e-5);
    for (int64_t j = 0; j < kChoices; ++j) {
      const int64_t c = t * kChoices + j, p = r.places[size_t(c)];
      double dot = 0;
      for (int64_t i = 0; i < kCols; ++i) {
        dot += double(g[size_t(p * kCols + i)]) * x[size_t(t * kCols + i)];
        EXPECT_FLOAT_EQ(dx[size_t(p * kCols + i)], r.weights[size_t(c)] * g[size_t(p * kCols + i)]);
      }
      EXPECT_NEAR(d_weights[size_t(c)], dot, 1e-5);
    }
  }
}

}  // namespace
}  // namespace lorashard
