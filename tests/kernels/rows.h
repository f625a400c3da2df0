// What the tests of row-wise kernels share: shapes, types and threads, and derivatives.
#pragma once

#include <gtest/gtest.h>

#include <complex>
#include <functional>

#include "kernels/stream.h"
#include "tests/kernels/reference.h"

namespace lorashard {

using Complex = std::complex<double>;

// The derivative of f at x, exact to rounding because nothing is subtracted
// (Squire and Trapp 1998). f must be analytic.
inline double complex_step(const std::function<Complex(Complex)>& f, double x) {
  constexpr double h = 1e-40;
  return f(Complex(x, h)).imag() / h;
}

inline constexpr DType F = DType::F32, B = DType::BF16, H = DType::F16;

class Rows : public testing::TestWithParam<std::tuple<DType, int64_t, int>> {
 protected:
  DType type = std::get<0>(GetParam());
  int64_t cols = std::get<1>(GetParam());
  Stream stream{std::get<2>(GetParam())};
  // Enough rows for two threads to share.
  int64_t rows = std::min<int64_t>(700, 1 + 40000 / cols);
  double eps = rounding(type) * 1.01;

  HostMatrix random(uint64_t seed, double spread = 1) {
    return HostMatrix(rows, cols, type, 5).randomize(seed, spread);
  }
};

inline auto row_cases() {
  return testing::Combine(testing::Values(DType::F32, DType::BF16),
                          testing::Values<int64_t>(1, 7, 16, 96, 577), testing::Values(1, 2));
}

}  // namespace lorashard
