// The norms against their definitions in double, and their gradients against complex steps on the
// same definitions.
#include "kernels/elementwise.h"
#include "kernels/layer_norm.h"
#include "kernels/rms_norm.h"
#include "tests/kernels/rows.h"

namespace lorashard {
namespace {

class Norms : public Rows {};
INSTANTIATE_TEST_SUITE_P(Types, Norms, row_cases());

// sum_j w_j y_j of one group, as a function of the element x_at.
Complex norm_sum(const HostMatrix& x, const HostMatrix& gain, const HostMatrix& w, int64_t t,
                 int64_t first, double eps, double offset, int64_t at, Complex x_at) {
  const auto element = [&](int64_t j) { return j == at ? x_at : Complex(x(t, first + j)); };
  Complex square = 0, sum = 0;
  for (int64_t j = 0; j < gain.cols; ++j) square += element(j) * element(j);
  const Complex rstd = 1.0 / std::sqrt(square / double(gain.cols) + eps);
  for (int64_t j = 0; j < gain.cols; ++j)
    sum += element(j) * rstd * (offset + gain(0, j)) * w(t, first + j);
  return sum;
}

TEST_P(Norms, Rms) {
  const int64_t d = cols % 2 == 0 ? cols / 2 : cols, groups = cols / d;  // halves, or whole rows
  for (DType gain_type : {F, B, H}) {
    const HostMatrix x = random(1), dy = random(2);
    const HostMatrix gain = HostMatrix(1, d, gain_type).randomize(3, 0.2, 1);
    const float norm_eps = 1e-3f, offset = gain_type == B ? 1 : 0;
    HostMatrix y(rows, cols, type, 1), rstd(rows, groups, F, 2);
    rms_norm_forward(stream, y, rstd, x, gain, norm_eps, offset);
    const auto want_rstd = [&](int64_t t, int64_t g) {
      double s = 0;
      for (int64_t j = 0; j < d; ++j) s += x(t, g * d + j) * x(t, g * d + j);
      return 1 / std::sqrt(s / double(d) + double(norm_eps));
    };
    // Sums of at most 577 squares in several lanes: a few roundings.
    expect_near(rstd, want_rstd, 0, 1e-6);
    expect_near(
        y,
        [&](int64_t t, int64_t j) {
          return x(t, j) * want_rstd(t, j / d) * (offset + gain(0, j % d));
        },
        0, eps + 2e-6);
    EXPECT_TRUE(y.gaps_untouched() && rstd.gaps_untouched());

    HostMatrix in_place = x;
    rms_norm_forward(stream, in_place, {}, in_place, gain, norm_eps, offset);
    for (int64_t t = 0; t < rows; ++t)
      for (int64_t j = 0; j < cols; ++j) ASSERT_EQ(in_place(t, j), y(t, j));

    // Products are summed in double and rounded once, with what stood there.
    HostMatrix d_gain = HostMatrix(1, d, F).randomize(6);
    const HostMatrix gain_before = d_gain;
    rms_norm_gain_backward(stream, d_gain, dy, x, rstd);
    expect_near(
        d_gain,
        [&](int64_t, int64_t j) {
          double sum = gain_before(0, j);
          for (int64_t t = 0; t < rows; ++t)
            for (int64_t g = 0; g < groups; ++g)
              sum += dy(t, g * d + j) * x(t, g * d + j) * rstd(t, g);
          return sum;
        },
        1e-6 * std::sqrt(double(rows * groups)), 1e-6);

    HostMatrix dx = random(4);
    const HostMatrix before = dx;
    rms_norm_backward(stream, dx, dy, x, rstd, gain, offset, true);
    HostMatrix aliased = dy;
    rms_norm_backward(stream, aliased, aliased, x, rstd, gain, offset, false);
    for (int64_t t = 0; t < rows; t += 1 + rows / 5)
      for (int64_t j = 0; j < cols; ++j) {
        const int64_t first = j / d * d;
        const double want = complex_step(
            [&](Complex v) {
              return norm_sum(x, gain, dy, t, first, norm_eps, offset, j - first, v);
            },
            x(t, j));
        // dx is a difference of terms of size rstd |gain dy|: absolute error of that size.
        const double size = want_rstd(t, j / d) * 10;
        ASSERT_NEAR(aliased(t, j), want, 1e-6 * size + eps * std::abs(want));
        ASSERT_NEAR(dx(t, j), want + before(t, j),
                    2e-6 * size + eps * std::abs(want + before(t, j)));
      }
  }
}

// sum_j w_j y_j of one row's layer norm, as a function of the element x_at.
Complex layer_norm_sum(const HostMatrix& x, const HostMatrix& gain, const HostMatrix& w, int64_t t,
                       double eps, int64_t at, Complex x_at) {
  const double d = double(x.cols);
  const auto element = [&](int64_t j) { return j == at ? x_at : Complex(x(t, j)); };
  Complex mean = 0, square = 0, sum = 0;
  for (int64_t j = 0; j < x.cols; ++j) mean += element(j) / d;
  for (int64_t j = 0; j < x.cols; ++j) square += (element(j) - mean) * (element(j) - mean);
  const Complex rstd = 1.0 / std::sqrt(square / d + eps);
  for (int64_t j = 0; j < x.cols; ++j) sum += (element(j) - mean) * rstd * gain(0, j) * w(t, j);
  return sum;
}

TEST_P(Norms, Layer) {
  for (DType weight_type : {F, B, H}) {
    // A mean of several spreads, as the residual stream of GPT-2 has.
    const HostMatrix x = HostMatrix(rows, cols, type, 5).randomize(1, 1, 4), dy = random(2);
    const HostMatrix gain = HostMatrix(1, cols, weight_type).randomize(3, 0.2, 1),
                     bias = HostMatrix(1, cols, weight_type).randomize(4, 0.5);
    const float norm_eps = 1e-2f;
    HostMatrix y(rows, cols, type, 1), stats(rows, 2, F, 2);
    layer_norm_forward(stream, y, stats, x, gain, bias, norm_eps);
    const auto moments = [&](int64_t t) {
      double mean = 0, square = 0;
      for (int64_t j = 0; j < cols; ++j) mean += x(t, j) / double(cols);
      for (int64_t j = 0; j < cols; ++j) square += (x(t, j) - mean) * (x(t, j) - mean);
      return std::pair{mean, 1 / std::sqrt(square / double(cols) + double(norm_eps))};
    };
    // The mean, of size 4, has a few roundings of 6e-8; up to 1 / sqrt(eps) = 10 times that error
    // is in what is normalised.
    for (int64_t t = 0; t < rows; ++t) {
      const auto [mean, rstd] = moments(t);
      ASSERT_NEAR(stats(t, 0), mean, 2e-6);
      ASSERT_NEAR(stats(t, 1), rstd, 2e-6 * rstd * rstd);
      for (int64_t j = 0; j < cols; ++j) {
        const double want = (x(t, j) - mean) * rstd * gain(0, j) + bias(0, j);
        ASSERT_NEAR(y(t, j), want, eps * std::abs(want) + 4e-6 * rstd);
      }
    }
    EXPECT_TRUE(y.gaps_untouched() && stats.gaps_untouched());

    HostMatrix in_place = x, no_bias(rows, cols, type), zeros(1, cols, weight_type),
               zero_bias = no_bias;
    layer_norm_forward(stream, in_place, {}, in_place, gain, bias, norm_eps);
    layer_norm_forward(stream, no_bias, {}, x, gain, {}, norm_eps);
    layer_norm_forward(stream, zero_bias, {}, x, gain, zeros.fill(0), norm_eps);
    for (int64_t t = 0; t < rows; ++t)
      for (int64_t j = 0; j < cols; ++j) {
        ASSERT_EQ(in_place(t, j), y(t, j));
        ASSERT_EQ(no_bias(t, j), zero_bias(t, j));
      }

    HostMatrix dx = random(5), aliased = dy;
    const HostMatrix before = dx;
    layer_norm_backward(stream, dx, dy, x, stats, gain, true);
    layer_norm_backward(stream, aliased, aliased, x, stats, gain, false);
    for (int64_t t = 0; t < rows; t += 1 + rows / 5)
      for (int64_t j = 0; j < cols; ++j) {
        const double want = complex_step(
            [&](Complex v) { return layer_norm_sum(x, gain, dy, t, norm_eps, j, v); }, x(t, j));
        // Differences of terms of size rstd |gain dy|, with the mean's error in one of them.
        const double rstd = moments(t).second, size = rstd * 10 * (1 + rstd);
        ASSERT_NEAR(aliased(t, j), want, 1e-6 * size + eps * std::abs(want));
        ASSERT_NEAR(dx(t, j), want + before(t, j),
                    2e-6 * size + eps * std::abs(want + before(t, j)));
      }
  }
}

// With something to add first, the norms equal those of the sum, bit for bit; the sum is rounded
// once and may take the place of x.
TEST_P(Norms, AddToTheResidualFirst) {
  for (DType weight_type : {F, B, H})
    for (bool with_bias : {false, true}) {
      const HostMatrix x = random(1), delta = random(2);
      const HostMatrix gain = HostMatrix(1, cols, weight_type).randomize(3, 0.2, 1),
                       bias = HostMatrix(1, cols, weight_type).randomize(4);
      const auto add_of = [&](Matrix sum) {
        return ResidualAdd{sum, delta, with_bias ? ConstMatrix(bias) : ConstMatrix{}};
      };
      HostMatrix sum(rows, cols, type, 2), y(rows, cols, type), rstd(rows, 1, F);
      rms_norm_forward(stream, y, rstd, x, gain, 1e-5f, 1, add_of(sum));
      expect_near(
          sum,
          [&](int64_t t, int64_t j) { return x(t, j) + (delta(t, j) + with_bias * bias(0, j)); },
          3e-7, eps);
      EXPECT_TRUE(sum.gaps_untouched());
      HostMatrix want_y(rows, cols, type), want_rstd(rows, 1, F), stats(rows, 2, F),
          want_stats(rows, 2, F);
      rms_norm_forward(stream, want_y, want_rstd, sum, gain, 1e-5f, 1);
      EXPECT_EQ(y, want_y);
      EXPECT_EQ(rstd, want_rstd);

      HostMatrix in_place = x;
      layer_norm_forward(stream, y, stats, in_place, gain, bias, 1e-5f, add_of(in_place));
      layer_norm_forward(stream, want_y, want_stats, sum, gain, bias, 1e-5f);
      for (int64_t t = 0; t < rows; ++t)
        for (int64_t j = 0; j < cols; ++j) ASSERT_EQ(in_place(t, j), sum(t, j));
      EXPECT_EQ(y, want_y);
      EXPECT_EQ(stats, want_stats);
    }
}

}  // namespace
}  // namespace lorashard
