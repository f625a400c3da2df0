// Normalisation, rotation, and the feed-forward activation.
#include <cmath>
#include <numbers>

#include "kernels/activation.h"
#include "kernels/layer_norm.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "launch/selftest/kernel_checks.h"
#include "launch/selftest/operand.h"

namespace lorashard::selftest {
namespace {

using Parts = std::vector<Part>;

struct NormShape {
  int64_t rows, groups, width, pad;
};
constexpr NormShape kNormShapes[] = {{3, 1, 96, 0}, {5, 3, 17, 3}};
constexpr double kEps = 1e-3;

// sum over group g of row t of f(column).
template <class F>
double group_sum(int64_t g, int64_t width, const F& f) {
  double sum = 0;
  for (int64_t j = g * width; j < (g + 1) * width; ++j) sum += f(j);
  return sum;
}

Parts normed(Stream& s, DType type) {
  Parts parts;
  for (const auto& [rows, groups, width, pad] : kNormShapes)
    for (const int offset : {0, 1}) {
      const int64_t d = width;
      Operand y(s, rows, groups * d, type, 1, pad), x(s, rows, groups * d, type, 2, pad),
          gain(s, 1, d, DType::BF16, 3), rstd(s, rows, groups, DType::F32, 4);
      rms_norm_forward(s, y, rstd, x, gain, float(kEps), float(offset));
      const auto want_rstd = [&](int64_t t, int64_t g) {
        const double squares = group_sum(g, d, [&](int64_t j) { return x(t, j) * x(t, j); });
        return 1 / std::sqrt(squares / double(d) + kEps);
      };
      parts.push_back(rstd.against(want_rstd));
      parts.push_back(y.against([&](int64_t t, int64_t j) {
        return x(t, j) * want_rstd(t, j / d) * (offset + gain(0, j % d));
      }));
    }
  return parts;
}

Parts normed_back(Stream& s, DType type) {
  Parts parts;
  for (const auto& [rows, groups, width, pad] : kNormShapes)
    for (const int offset : {0, 1}) {
      const int64_t d = width;
      const bool accumulate = offset == 1;
      Operand dx(s, rows, groups * d, type, 1, pad), x(s, rows, groups * d, type, 2, pad),
          dy(s, rows, groups * d, type, 3), gain(s, 1, d, DType::BF16, 4),
          rstd(s, rows, groups, DType::F32, 5);
      rstd.fill([&](int64_t t, int64_t g) {
        const double squares = group_sum(g, d, [&](int64_t j) { return x(t, j) * x(t, j); });
        return 1 / std::sqrt(squares / double(d) + kEps);
      });
      rms_norm_backward(s, dx, dy, x, rstd, gain, float(offset), accumulate);
      parts.push_back(dx.against([&](int64_t t, int64_t j) {
        const auto u = [&](int64_t c) { return dy(t, c) * (offset + gain(0, c % d)); };
        const double r = rstd(t, j / d);
        const double along = group_sum(j / d, d, [&](int64_t c) { return u(c) * x(t, c); });
        return (accumulate ? dx(t, j) : 0) + r * (u(j) - x(t, j) * r * r * along / double(d));
      }));
    }
  return parts;
}

Parts gain_back(Stream& s, DType type) {
  Parts parts;
  for (const auto& [rows, groups, width, pad] : kNormShapes) {
    const int64_t d = width;
    Operand d_gain(s, 1, d, DType::F32, 1), x(s, rows, groups * d, type, 2, pad),
        dy(s, rows, groups * d, type, 3), rstd(s, rows, groups, DType::F32, 4);
    rms_norm_gain_backward(s, d_gain, dy, x, rstd);
    parts.push_back(d_gain.against([&, rows = rows, groups = groups](int64_t, int64_t j) {
      double sum = d_gain(0, j);
      for (int64_t t = 0; t < rows; ++t)
        for (int64_t g = 0; g < groups; ++g) sum += dy(t, g * d + j) * x(t, g * d + j) * rstd(t, g);
      return sum;
    }));
  }
  return parts;
}

// The sum of a residual on the way, and the norms of it.
Parts added_and_normed(Stream& s, DType type) {
  Parts parts;
  for (const int64_t d : {96, 1031}) {
    constexpr int64_t kRows = 4;
    Operand y(s, kRows, d, type, 1), sum(s, kRows, d, type, 2, 3), x(s, kRows, d, type, 3),
        delta(s, kRows, d, type, 4), bias(s, 1, d, DType::BF16, 5), gain(s, 1, d, DType::BF16, 6);
    const auto added = [&](int64_t t, int64_t j) { return x(t, j) + delta(t, j) + bias(0, j); };
    rms_norm_forward(s, y, {}, x, gain, float(kEps), 0, {sum, delta, bias});
    parts.push_back(sum.against(added));
    parts.push_back(y.against([&](int64_t t, int64_t j) {
      const double squares = group_sum(0, d, [&](int64_t c) { return added(t, c) * added(t, c); });
      return added(t, j) / std::sqrt(squares / double(d) + kEps) * gain(0, j);
    }));
  }
  return parts;
}

struct Moments {
  double mean, rstd;
};
Moments moments(const Operand& x, int64_t t, int64_t d) {
  const double mean = group_sum(0, d, [&](int64_t j) { return x(t, j); }) / double(d);
  const double squares =
      group_sum(0, d, [&](int64_t j) { return (x(t, j) - mean) * (x(t, j) - mean); });
  return {mean, 1 / std::sqrt(squares / double(d) + kEps)};
}

Parts layer_normed(Stream& s, DType type) {
  Parts parts;
  for (const int64_t d : {17, 96, 1031}) {
    constexpr int64_t kRows = 4;
    Operand y(s, kRows, d, type, 1, 3), x(s, kRows, d, type, 2), gain(s, 1, d, DType::BF16, 3),
        bias(s, 1, d, DType::F32, 4), stats(s, kRows, 2, DType::F32, 5);
    layer_norm_forward(s, y, stats, x, gain, bias, float(kEps));
    parts.push_back(stats.against([&](int64_t t, int64_t j) {
      const Moments m = moments(x, t, d);
      return j == 0 ? m.mean : m.rstd;
    }));
    parts.push_back(y.against([&](int64_t t, int64_t j) {
      const Moments m = moments(x, t, d);
      return (x(t, j) - m.mean) * m.rstd * gain(0, j) + bias(0, j);
    }));
  }
  return parts;
}

Parts layer_normed_back(Stream& s, DType type) {
  Parts parts;
  for (const bool accumulate : {false, true})
    for (const int64_t d : {17, 1031}) {
      constexpr int64_t kRows = 3;
      Operand dx(s, kRows, d, type, 1, 3), x(s, kRows, d, type, 2), dy(s, kRows, d, type, 3),
          gain(s, 1, d, DType::BF16, 4), stats(s, kRows, 2, DType::F32, 5);
      stats.fill([&](int64_t t, int64_t j) {
        const Moments m = moments(x, t, d);
        return j == 0 ? m.mean : m.rstd;
      });
      layer_norm_backward(s, dx, dy, x, stats, gain, accumulate);
      parts.push_back(dx.against([&](int64_t t, int64_t j) {
        const double mean = stats(t, 0), r = stats(t, 1);
        const auto w = [&](int64_t c) { return gain(0, c) * dy(t, c); };
        const auto n = [&](int64_t c) { return (x(t, c) - mean) * r; };
        const double all = group_sum(0, d, w) / double(d),
                     along = group_sum(0, d, [&](int64_t c) { return w(c) * n(c); }) / double(d);
        return (accumulate ? dx(t, j) : 0) + r * (w(j) - all - n(j) * along);
      }));
    }
  return parts;
}

Parts rotated(Stream& s, DType type) {
  Parts parts;
  // Whole heads and a part of odd ones.
  for (const auto& [heads, d, half] : {std::array<int64_t, 3>{2, 64, 32}, {3, 22, 7}})
    for (const bool inverse : {false, true}) {
      constexpr int64_t kRows = 5;
      Operand x(s, kRows, heads * d, type, 1, 2), table(s, 9, 2 * half, DType::F32, 2);
      table.fill([h = half](int64_t p, int64_t j) {
        const double angle = double(p) * std::pow(0.7, double(j % h));
        return j < h ? std::cos(angle) : std::sin(angle);
      });
      Numbers<int32_t> positions(s, {0, 8, 3, 3, 1});
      rope(s, x, heads, positions.device(), table, inverse);
      parts.push_back(x.against([&, d = d, half = half](int64_t t, int64_t j) {
        const int64_t c = j % d, start = j - c, pair = c % half;
        if (c >= 2 * half) return x(t, j);
        const double cosine = table(positions[t], pair),
                     sine = table(positions[t], half + pair) * (inverse ? -1 : 1),
                     x1 = x(t, start + pair), x2 = x(t, start + half + pair);
        return c < half ? x1 * cosine - x2 * sine : x2 * cosine + x1 * sine;
      }));
    }
  return parts;
}

struct ValueAndSlope {
  double value, slope;
};

ValueAndSlope activation(Activation f, double x) {
  if (f == Activation::SILU) {
    const double sigmoid = 1 / (1 + std::exp(-x));
    return {x * sigmoid, sigmoid * (1 + x * (1 - sigmoid))};
  }
  if (f == Activation::GELU) {
    const double below = 0.5 * std::erfc(-x / std::numbers::sqrt2),
                 density = std::exp(-x * x / 2) / std::sqrt(2 * std::numbers::pi);
    return {x * below, below + x * density};
  }
  const double k = std::sqrt(2 / std::numbers::pi), t = std::tanh(k * (x + 0.044715 * x * x * x));
  return {0.5 * x * (1 + t),
          0.5 * (1 + t) + 0.5 * x * (1 - t * t) * k * (1 + 3 * 0.044715 * x * x)};
}

constexpr Activation kActivations[] = {Activation::SILU, Activation::GELU, Activation::GELU_TANH};

Parts activated(Stream& s, DType type) {
  Parts parts;
  for (const Activation f : kActivations)
    for (const auto& [r, c] : {std::pair<int64_t, int64_t>{3, 64}, {5, 37}}) {
      Operand y(s, r, c, type, 1, 3), gate(s, r, c, type, 2), up(s, r, c, type, 3);
      gated_activation_forward(s, y, gate, up, f);
      parts.push_back(y.against(
          [&](int64_t i, int64_t j) { return activation(f, gate(i, j)).value * up(i, j); }));
    }
  return parts;
}

Parts activated_back(Stream& s, DType type) {
  Parts parts;
  for (const Activation f : kActivations)
    for (const auto& [r, c] : {std::pair<int64_t, int64_t>{3, 64}, {5, 37}}) {
      Operand d_gate(s, r, c, type, 1, 3), d_up(s, r, c, type, 2), dy(s, r, c, type, 3),
          gate(s, r, c, type, 4), up(s, r, c, type, 5);
      gated_activation_backward(s, d_gate, d_up, dy, gate, up, f);
      parts.push_back(d_gate.against([&](int64_t i, int64_t j) {
        return dy(i, j) * up(i, j) * activation(f, gate(i, j)).slope;
      }));
      parts.push_back(d_up.against(
          [&](int64_t i, int64_t j) { return dy(i, j) * activation(f, gate(i, j)).value; }));
    }
  return parts;
}

}  // namespace

void add_norm_checks(std::vector<KernelCheck>& checks) {
  const std::pair<const char*, Parts (*)(Stream&, DType)> kAll[] = {
      {"rms_norm_forward", normed},
      {"rms_norm_backward", normed_back},
      {"rms_norm_gain_backward", gain_back},
      {"residual_and_norm", added_and_normed},
      {"layer_norm_forward", layer_normed},
      {"layer_norm_backward", layer_normed_back},
      {"rope", rotated},
      {"gated_activation_forward", activated},
      {"gated_activation_backward", activated_back}};
  for (const auto& [name, run] : kAll)
    for (DType type : {DType::F32, DType::BF16})
      // Sum and norm are rounded one after the other.
      checks.push_back({name, type, (run == added_and_normed ? 2 : 1) * rounded_once(type),
                        [run = run, type](Stream& s) { return run(s, type); }});
}

}  // namespace lorashard::selftest
