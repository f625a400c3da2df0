// Column sums, scaling of columns and DoRA's weight norms against their definitions in double.
#include "kernels/columns.h"

#include <cmath>

#include "kernels/dora.h"
#include "tests/kernels/rows.h"

namespace lorashard {
namespace {

class Columns : public Rows {};
INSTANTIATE_TEST_SUITE_P(Types, Columns, row_cases());

TEST_P(Columns, SumsOfValuesAndOfProducts) {
  const HostMatrix x = random(1), y = random(2);
  for (const bool products : {false, true}) {
    HostMatrix sums = HostMatrix(1, cols, F, 3).randomize(3);
    const HostMatrix before = sums;
    add_column_sums(stream, sums, x, products ? ConstMatrix(y) : ConstMatrix{});
    // Formed in double, rounded once.
    expect_near(
        sums,
        [&](int64_t, int64_t j) {
          double sum = before(0, j);
          for (int64_t t = 0; t < rows; ++t) sum += x(t, j) * (products ? y(t, j) : 1);
          return sum;
        },
        1e-10, 1e-7);
    EXPECT_TRUE(sums.gaps_untouched());
  }
}

TEST_P(Columns, ScaledByFactorsOfTheirOwn) {
  const HostMatrix x = random(1), factors = HostMatrix(1, cols, F).randomize(2);
  for (const bool accumulate : {false, true}) {
    HostMatrix y = random(3);
    const HostMatrix before = y;
    scale_columns(stream, y, x, factors, accumulate);
    expect_near(
        y,
        [&](int64_t i, int64_t j) {
          return (accumulate ? before(i, j) : 0) + x(i, j) * factors(0, j);
        },
        2e-7, eps);
    EXPECT_TRUE(y.gaps_untouched());
  }
  HostMatrix same = x, y = random(3);  // aliasing
  scale_columns(stream, same, same, factors);
  scale_columns(stream, y, x, factors);
  EXPECT_EQ(same, y);
}

// ||W + scaling B A|| by thin products, within fp32's rounding of the terms' sizes.
TEST(Dora, NormsOfTheUpdatedWeight) {
  for (const auto& [n, k, r] : {std::array<int64_t, 3>{1, 1, 1}, {37, 130, 3}, {96, 577, 16}}) {
    for (const DType type : {F, B, H}) {
      Stream stream(2);
      const float scaling = 1.75f;
      const HostMatrix w = HostMatrix(n, k, type, 3).randomize(1),
                       a = HostMatrix(r, k, F).randomize(2),
                       b = HostMatrix(n, r, F, 2).randomize(3),
                       m = HostMatrix(1, n, F).randomize(4);
      HostMatrix p(r, n, F, 1), gram(r, r, F), base(1, n, F), squares(1, n, F), scale(1, n, F),
          excess(1, n, F), inverse(1, n, F);
      for (int64_t i = 0; i < r; ++i) {
        for (int64_t j = 0; j < n; ++j) {
          double sum = 0;
          for (int64_t c = 0; c < k; ++c) sum += a(i, c) * w(j, c);
          p.set(i, j, sum);
        }
        for (int64_t j = 0; j < r; ++j) {
          double sum = 0;
          for (int64_t c = 0; c < k; ++c) sum += a(i, c) * a(j, c);
          gram.set(i, j, sum);
        }
      }
      row_squares(stream, base, w);
      dora_squares(stream, squares, base, p, b, gram, scaling);
      dora_scales(stream, scale, excess, inverse, squares, m);
      for (int64_t j = 0; j < n; ++j) {
        double plain = 0, update = 0, both = 0;
        for (int64_t c = 0; c < k; ++c) {
          double delta = 0;
          for (int64_t i = 0; i < r; ++i) delta += double(scaling) * b(j, i) * a(i, c);
          plain += w(j, c) * w(j, c);
          update += delta * delta;
          both += (w(j, c) + delta) * (w(j, c) + delta);
        }
        EXPECT_NEAR(base(0, j), plain, 1e-7 * plain);
        ASSERT_NEAR(squares(0, j), both, 3e-7 * (plain + update));
        const double norm = std::sqrt(squares(0, j));
        EXPECT_NEAR(inverse(0, j), 1 / norm, 2e-7 / norm);
        EXPECT_NEAR(scale(0, j), m(0, j) / norm, 3e-7 * std::fabs(m(0, j)) / norm);
        EXPECT_EQ(excess(0, j), double(float(scale(0, j)) - 1));
      }
    }
  }
}

}  // namespace
}  // namespace lorashard
