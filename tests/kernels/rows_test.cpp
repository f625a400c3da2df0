// Row-wise kernels against their definitions in double, and their gradients against complex steps
// on the same definitions.
#include <complex>

#include "kernels/activation.h"
#include "kernels/adamw.h"
#include "kernels/cross_entropy.h"
#include "kernels/dropout.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/rope.h"
#include "kernels/rows.h"
#include "tests/kernels/rows.h"

namespace lorashard {
namespace {

INSTANTIATE_TEST_SUITE_P(Types, Rows, row_cases());

// ---- element-wise

TEST_P(Rows, AddBiasScaleConvert) {
  const HostMatrix a = random(1), b = random(2);
  HostMatrix y(rows, cols, type, 3);
  add(stream, y, a, b);
  expect_near(
      y, [&](int64_t i, int64_t j) { return a(i, j) + b(i, j); }, 1e-7, eps);

  for (DType t : {F, B, H}) {
    const HostMatrix bias = HostMatrix(1, cols, t).randomize(3);
    HostMatrix z = a;
    add_bias(stream, z, bias);
    expect_near(
        z, [&](int64_t i, int64_t j) { return a(i, j) + bias(0, j); }, 1e-7, eps);
  }

  HostMatrix z = a;
  scale(stream, z, -0.75f);
  expect_near(
      z, [&](int64_t i, int64_t j) { return -0.75 * a(i, j); }, 0, eps);

  HostMatrix same = a;  // aliasing
  add(stream, same, same, b);
  add(stream, z, a, b);
  EXPECT_EQ(same, z);

  for (DType t : {F, B, H}) {
    HostMatrix c(rows, cols, t, 2);
    convert(stream, c, a);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < cols; ++j) {
        HostMatrix one(1, 1, t);
        one.set(0, 0, a(i, j));
        ASSERT_EQ(c(i, j), one(0, 0));
      }
    EXPECT_TRUE(c.gaps_untouched());
  }

  fill_zero(stream, y);
  expect_near(
      y, [](int64_t, int64_t) { return 0; }, 0, 0);
  EXPECT_TRUE(y.gaps_untouched());
}

// ---- rope

TEST_P(Rows, Rope) {
  const int64_t heads = 3, d = 2 * cols, r = (cols + 1) / 2;  // 2r <= d: the rest stays
  HostMatrix x(rows, heads * d, type, 4);
  x.randomize(1);
  const HostMatrix table = HostMatrix(17, 2 * r, F, 1).randomize(2);
  std::vector<int32_t> positions;
  for (int64_t t = 0; t < rows; ++t) positions.push_back(int32_t(t * 5 % 17));
  const auto rotated = [&](const HostMatrix& m, double sign) {
    return [&, sign](int64_t t, int64_t j) {
      const int64_t i = j % d, base = j - i, p = positions[size_t(t)];
      if (i >= 2 * r) return m(t, j);
      const double c = table(p, i % r), s = sign * table(p, r + i % r);
      return i < r ? m(t, j) * c - m(t, base + i + r) * s : m(t, j) * c + m(t, base + i - r) * s;
    };
  };
  HostMatrix y = x;
  rope(stream, y, heads, positions.data(), table, false);
  expect_near(y, rotated(x, 1), 1e-6, eps + 1e-6);
  y = x;
  rope(stream, y, heads, positions.data(), table, true);
  expect_near(y, rotated(x, -1), 1e-6, eps + 1e-6);
  EXPECT_TRUE(y.gaps_untouched());
}

// Rotation is linear, so its gradient is its transpose: <rope(x), w> = <x, inverse(w)>.
TEST(Rope, InverseIsTheGradient) {
  Stream stream(1);
  HostMatrix x(1, 32, F), w(1, 32, F), rx = x.randomize(1), iw = w.randomize(2);
  const HostMatrix table = HostMatrix(1, 32, F).randomize(3);
  const int32_t position = 0;
  rope(stream, rx, 1, &position, table, false);
  rope(stream, iw, 1, &position, table, true);
  double a = 0, b = 0;
  for (int64_t j = 0; j < 32; ++j) a += rx(0, j) * w(0, j), b += x(0, j) * iw(0, j);
  EXPECT_NEAR(a, b, 1e-5);
}

// ---- activation

// erf for complex arguments next to the real axis: its Taylor step is exact to h^2 = 1e-80.
Complex activation(Activation f, Complex x) {
  switch (f) {
    case Activation::SILU:
      return x / (1.0 + std::exp(-x));
    case Activation::GELU: {
      const double phi = 0.5 * std::erfc(-x.real() / std::sqrt(2.0));
      const double density = std::exp(-0.5 * x.real() * x.real()) / std::sqrt(2 * M_PI);
      return x * Complex(phi, density * x.imag());
    }
    default: {
      const Complex u = std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x);
      return 0.5 * x * (1.0 + std::tanh(u));
    }
  }
}

TEST_P(Rows, Activation) {
  for (Activation f : {Activation::SILU, Activation::GELU, Activation::GELU_TANH})
    for (bool gated : {true, false}) {
      const HostMatrix gate = random(1, 3), up_values = random(2), dy = random(3);
      const ConstMatrix up = gated ? up_values.view() : ConstMatrix{};
      HostMatrix y(rows, cols, type, 2);
      gated_activation_forward(stream, y, gate, up, f);
      // The rational erf is good to 3e-7 absolute; exp and division to a few ulp.
      const double approximation = 2e-6;
      const auto factor = [&](int64_t i, int64_t j) { return gated ? up_values(i, j) : 1.0; };
      expect_near(
          y, [&](int64_t i, int64_t j) { return activation(f, gate(i, j)).real() * factor(i, j); },
          approximation, eps + approximation);
      EXPECT_TRUE(y.gaps_untouched());

      HostMatrix d_gate = gate, d_up = up_values;  // outputs may alias gate and up
      gated_activation_backward(stream, d_gate, gated ? d_up.view() : Matrix{}, dy, d_gate,
                                gated ? ConstMatrix(d_up.view()) : ConstMatrix{}, f);
      expect_near(
          d_gate,
          [&](int64_t i, int64_t j) {
            return dy(i, j) * factor(i, j) *
                   complex_step([&](Complex x) { return activation(f, x); }, gate(i, j));
          },
          2 * approximation, eps + 2 * approximation);
      if (gated)
        expect_near(
            d_up, [&](int64_t i, int64_t j) { return dy(i, j) * activation(f, gate(i, j)).real(); },
            2 * approximation, eps + approximation);
    }
}

// Far arguments: no overflow, no NaN, the limits exactly enough.
TEST(Activation, FarArguments) {
  Stream stream(1);
  for (Activation f : {Activation::SILU, Activation::GELU, Activation::GELU_TANH}) {
    HostMatrix x(1, 4, F), one(1, 4, F), y(1, 4, F), dx(1, 4, F);
    one.fill(1);
    x.set(0, 0, -1e4), x.set(0, 1, 1e4), x.set(0, 2, 0), x.set(0, 3, -90);
    gated_activation_forward(stream, y, x, {}, f);
    gated_activation_backward(stream, dx, {}, one, x, {}, f);
    EXPECT_NEAR(y(0, 0), 0, 1e-30);
    EXPECT_EQ(y(0, 1), 1e4);
    EXPECT_EQ(y(0, 2), 0);
    EXPECT_NEAR(y(0, 3), 0, 1e-30);
    // e^-x stops growing at x = -88, so the slope keeps a trace of the cubic in GELU's argument.
    EXPECT_NEAR(dx(0, 0), 0, 1e-20);
    EXPECT_EQ(dx(0, 1), 1);
    EXPECT_EQ(dx(0, 2), 0.5);
    x.fill(NAN);
    gated_activation_forward(stream, y, x, {}, f);
    EXPECT_TRUE(std::isnan(y(0, 0)));  // a non-finite loss must be noticed
  }
}

// ---- embedding

TEST_P(Rows, Embedding) {
  for (DType table_type : {F, B, H}) {
    const HostMatrix table = HostMatrix(50, cols, table_type, 1).randomize(1);
    std::vector<int32_t> ids;
    for (int64_t t = 0; t < rows; ++t) ids.push_back(int32_t(t * 37 % 200));
    HostMatrix y(rows, cols, type, 2);
    y.fill(NAN);
    embedding_forward(stream, y, ids.data(), table, 100, 1.5f);
    expect_near(
        y,
        [&](int64_t t, int64_t j) {
          const int32_t id = ids[size_t(t)];
          return id >= 100 && id < 150 ? 1.5 * table(id - 100, j) : 0.0;
        },
        0, eps);
    EXPECT_TRUE(y.gaps_untouched());
  }
}

TEST_P(Rows, EmbeddingBackward) {
  const HostMatrix dy = random(1);
  std::vector<int32_t> ids;  // rows that come once, often, and of other ranks
  for (int64_t t = 0; t < rows; ++t) ids.push_back(int32_t(t * 37 % 60 + 80));
  HostMatrix table(50, cols, F, 3);
  table.randomize(2);
  const HostMatrix before = table;
  embedding_backward(stream, table, ids.data(), dy, 100, -0.5f);
  expect_near(
      table,
      [&](int64_t i, int64_t j) {
        double sum = before(i, j);
        for (int64_t t = 0; t < rows; ++t) sum -= ids[size_t(t)] == i + 100 ? 0.5 * dy(t, j) : 0.0;
        return sum;
      },
      1e-6, 1e-6);
  EXPECT_TRUE(table.gaps_untouched());
  HostMatrix again = before;
  Stream one(1);
  embedding_backward(one, again, ids.data(), dy, 100, -0.5f);
  EXPECT_EQ(again, table);
}

TEST_P(Rows, PutAndTakeColumns) {
  if (type != F || cols < 2) return;
  const HostMatrix before = random(1), x = HostMatrix(rows, 3, F, 2).randomize(2);
  const std::vector<int32_t> which = {int32_t(9 + cols), 10, 9};  // the last is another rank's
  HostMatrix y = before;
  put_columns(stream, y, x, which.data(), 10);
  const auto put = [&](int64_t t, int64_t j) {
    return j == cols - 1 ? x(t, 0) : j == 0 ? x(t, 1) : before(t, j);
  };
  expect_near(y, put, 0, 0);
  HostMatrix taken(rows, 3, F, 2);
  taken.fill(NAN);
  take_columns(stream, taken, y, which.data(), 10);
  expect_near(
      taken, [&](int64_t t, int64_t k) { return k < 2 ? x(t, k) : 0; }, 0, 0);
  expect_near(
      y, [&](int64_t t, int64_t j) { return j == cols - 1 || j == 0 ? 0 : before(t, j); }, 0, 0);
  EXPECT_TRUE(y.gaps_untouched() && taken.gaps_untouched());
}

// ---- dropout

TEST_P(Rows, Dropout) {
  const uint64_t seed = 77;
  const uint32_t site = 5;
  std::vector<uint64_t> keys;
  for (int64_t t = 0; t < rows; ++t) keys.push_back(0x123456789ull * uint64_t(t + 1));
  const HostMatrix x = random(1);
  for (int64_t first_col : {0, 3, 1026})
    for (float p : {0.0f, 0.1f, 0.5f}) {
      // The scalar definition of dropout.h.
      const auto factor = [&](int64_t t, int64_t j) {
        const uint64_t c = uint64_t(first_col + j);
        const auto words =
            random_words(seed, Purpose::Dropout, keys[size_t(t)], (uint64_t{site} << 32) | (c / 4));
        return uniform01(words[c % 4]) >= p ? 1 / (1 - double(p)) : 0.0;
      };
      HostMatrix y(rows, cols, type, 2);
      y.fill(NAN);
      dropout(stream, y, x, seed, site, keys.data(), first_col, p, false);
      expect_near(
          y, [&](int64_t t, int64_t j) { return x(t, j) * factor(t, j); }, 0, eps + 1e-7);
      HostMatrix sum = random(9);
      const HostMatrix before = sum;
      dropout(stream, sum, x, seed, site, keys.data(), first_col, p, true);
      expect_near(
          sum, [&](int64_t t, int64_t j) { return before(t, j) + x(t, j) * factor(t, j); }, 5e-7,
          eps);
      EXPECT_TRUE(y.gaps_untouched() && sum.gaps_untouched());
    }
}

// A slice of the columns draws the mask of those columns.
TEST(Dropout, SlicesShareOneMask) {
  Stream stream(1);
  HostMatrix x(3, 40, F), whole(3, 40, F), left(3, 13, F), right(3, 27, F);
  x.fill(1);
  const uint64_t keys[] = {1, 2, 1};
  dropout(stream, whole, x, 1, 2, keys, 0, 0.5f, false);
  dropout(stream, left, x.view().col_range(0, 13), 1, 2, keys, 0, 0.5f, false);
  dropout(stream, right, x.view().col_range(13, 27), 1, 2, keys, 13, 0.5f, false);
  for (int64_t t = 0; t < 3; ++t)
    for (int64_t j = 0; j < 40; ++j) EXPECT_EQ(whole(t, j), j < 13 ? left(t, j) : right(t, j - 13));
  for (int64_t j = 0; j < 40; ++j) EXPECT_EQ(whole(0, j), whole(2, j));  // equal keys
}

// The share of zeros is p within four standard deviations.
TEST(Dropout, DropsTheShareAsked) {
  Stream stream(2);
  const int64_t n = 1 << 20;
  HostMatrix x(16, n / 16, F), y(16, n / 16, F);
  x.fill(1);
  std::vector<uint64_t> keys(16);
  for (size_t i = 0; i < 16; ++i) keys[i] = i;
  for (float p : {0.05f, 0.3f}) {
    dropout(stream, y, x, 3, 4, keys.data(), 0, p, false);
    double zeros = 0;
    for (int64_t i = 0; i < 16; ++i)
      for (int64_t j = 0; j < n / 16; ++j) zeros += y(i, j) == 0;
    EXPECT_NEAR(zeros / n, p, 4 * std::sqrt(p * (1 - p) / n));
  }
}

// ---- cross entropy

TEST_P(Rows, CrossEntropy) {
  HostMatrix logits = random(1, 4);
  const int64_t first = 1000;  // this rank's slice starts here
  std::vector<int32_t> labels;
  std::vector<float> lse;
  for (int64_t r = 0; r < rows; ++r)
    labels.push_back(int32_t(r % 3 == 2 ? r % 1000 : first + r % cols));
  HostMatrix stats(rows, 3, F, 1);
  cross_entropy_stats(stream, stats, logits, labels.data(), first);
  for (int64_t r = 0; r < rows; ++r) {
    double top = -INFINITY, sum = 0;
    for (int64_t j = 0; j < cols; ++j) top = std::max(top, logits(r, j));
    for (int64_t j = 0; j < cols; ++j) sum += std::exp(logits(r, j) - top);
    const int64_t c = labels[size_t(r)] - first;
    ASSERT_EQ(stats(r, 0), top);
    ASSERT_NEAR(stats(r, 1), sum, 1e-6 * sum);
    ASSERT_EQ(stats(r, 2), c >= 0 && c < cols ? logits(r, c) : 0);
    lse.push_back(float(top + std::log(sum + 1)));  // other ranks hold the rest
  }
  // The gradient of factor * (lse - logit[label]), by its definition: complex_step on lse would
  // only restate exp(logit - lse).
  const HostMatrix before = logits;
  cross_entropy_gradient(stream, logits, lse.data(), labels.data(), first, 0.25f);
  expect_near(
      logits,
      [&](int64_t r, int64_t j) {
        const double p = std::exp(before(r, j) - double(lse[size_t(r)]));
        return 0.25 * (p - (labels[size_t(r)] - first == j));
      },
      // The argument of exp carries a rounding of its own size, at most 20.
      2e-7, eps + 2.5e-6);
  EXPECT_TRUE(logits.gaps_untouched());
  // A factor of each row's own, on top.
  HostMatrix scaled = before, alone = before;
  const std::vector<float> factors(size_t(rows), -0.5f);
  cross_entropy_gradient(stream, scaled, lse.data(), labels.data(), first, 0.5f, factors.data());
  cross_entropy_gradient(stream, alone, lse.data(), labels.data(), first, -0.25f);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < cols; ++j) ASSERT_EQ(scaled(r, j), alone(r, j));
}

// The whole loss of one row by complex steps, with one rank holding the whole vocabulary.
TEST(CrossEntropy, GradientByComplexStep) {
  Stream stream(1);
  const int64_t v = 300;
  HostMatrix logits(1, v, F);
  logits.randomize(1, 3);
  const int32_t label = 17;
  HostMatrix stats(1, 3, F), gradient = logits;
  cross_entropy_stats(stream, stats, logits, &label, 0);
  const float lse = float(stats(0, 0) + std::log(stats(0, 1)));
  cross_entropy_gradient(stream, gradient, &lse, &label, 0, 1);
  for (int64_t j = 0; j < v; ++j) {
    const double want = complex_step(
        [&](Complex x) {
          Complex sum = 0;
          for (int64_t i = 0; i < v; ++i) sum += std::exp(i == j ? x : logits(0, i));
          return std::log(sum) - (j == label ? x : logits(0, label));
        },
        logits(0, j));
    EXPECT_NEAR(gradient(0, j), want, 1e-6);
  }
}

TEST(CrossEntropy, LargeVocabularyAndNonFiniteLogits) {
  Stream stream(2);
  const int64_t v = 50001;
  HostMatrix logits(3, v, F), stats(3, 3, F);
  logits.randomize(1, 5);
  logits.set(1, 4000, NAN);
  logits.set(2, 49999, 300);  // the last piece raises the maximum: everything else vanishes
  const int32_t labels[] = {0, 1, 2};
  cross_entropy_stats(stream, stats, logits, labels, 0);
  double top = -INFINITY, sum = 0;
  for (int64_t j = 0; j < v; ++j) top = std::max(top, logits(0, j));
  for (int64_t j = 0; j < v; ++j) sum += std::exp(logits(0, j) - top);
  EXPECT_EQ(stats(0, 0), top);
  EXPECT_NEAR(stats(0, 1), sum, 2e-6 * sum);
  EXPECT_TRUE(std::isnan(stats(1, 0) + stats(1, 1)));
  EXPECT_EQ(stats(2, 0), 300);
  EXPECT_EQ(stats(2, 1), 1);
}

// ---- adamw

// torch.optim.AdamW's single-tensor step, in double.
TEST(AdamW, FollowsTorch) {
  Stream stream(2);
  const int64_t n = 40001;
  HostMatrix p(1, n, F), g(1, n, F), m(1, n, F), v(1, n, F);
  p.randomize(1);
  std::vector<double> wp, wm(size_t(n), 0.0), wv(size_t(n), 0.0);
  for (int64_t i = 0; i < n; ++i) wp.push_back(p(0, i));
  const double lr = 1e-2, b1 = 0.9, b2 = 0.999, eps = 1e-8, decay = 0.1, factor = 0.5;
  for (int step = 1; step <= 5; ++step) {
    g.randomize(uint64_t(step) + 10, 1e-3);
    adamw(stream, reinterpret_cast<float*>(p.view().data), reinterpret_cast<float*>(m.view().data),
          reinterpret_cast<float*>(v.view().data), reinterpret_cast<float*>(g.view().data), n,
          {.learning_rate = float(lr),
           .beta1 = float(b1),
           .beta2 = float(b2),
           .epsilon = float(eps),
           .weight_decay = float(decay),
           .step = step,
           .gradient_scale = float(factor)});
    for (int64_t i = 0; i < n; ++i) {
      const size_t k = size_t(i);
      const double grad = g(0, i) * factor;
      wp[k] *= 1 - lr * decay;
      wm[k] += (1 - b1) * (grad - wm[k]);
      wv[k] = b2 * wv[k] + (1 - b2) * grad * grad;
      wp[k] -= lr / (1 - std::pow(b1, step)) * wm[k] /
               (std::sqrt(wv[k]) / std::sqrt(1 - std::pow(b2, step)) + eps);
    }
  }
  // beta2 in fp32 leaves 1 - beta2 exact to 2e-5; a step moves p by about lr.
  const auto of = [](const std::vector<double>& w) {
    return [&w](int64_t, int64_t i) { return w[size_t(i)]; };
  };
  expect_near(p, of(wp), 1e-6, 1e-6);
  expect_near(m, of(wm), 1e-10, 1e-6);
  expect_near(v, of(wv), 1e-14, 5e-5);
}

TEST(SumOfSquares, DependsOnTheLengthAlone) {
  for (int64_t n : {0, 1, 15, 16, 1000, 100003}) {
    HostMatrix x(1, n, F);
    x.randomize(1);
    const auto* data = reinterpret_cast<const float*>(std::as_const(x).view().data);
    Stream one(1), two(2);
    double s = -1, t = -1;
    sum_of_squares(one, &s, data, n);
    sum_of_squares(two, &t, data, n);
    EXPECT_EQ(s, t);
    long double want = 0;
    for (int64_t i = 0; i < n; ++i) want += (long double)x(0, i) * x(0, i);
    EXPECT_NEAR(s, double(want), 1e-12 * double(want));
  }
}

}  // namespace
}  // namespace lorashard
