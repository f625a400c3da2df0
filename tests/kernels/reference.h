// What the kernel tests share: host matrices of any storage type, random and strided, read as
// double by the references.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#include "kernels/float_types.h"
#include "kernels/stream.h"
#include "kernels/tensor.h"

namespace lorashard {

// Owns a matrix whose rows lie `pad` elements further apart than needed. The gaps hold a pattern
// that gaps_untouched() checks.
struct HostMatrix {
  HostMatrix(int64_t rows, int64_t cols, DType dtype, int64_t pad = 0)
      : rows(rows), cols(cols), ld(cols + pad), dtype(dtype) {
    bytes.assign(size_t((rows * ld + 1) * size_of(dtype)), 0x5a);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < cols; ++j) set(i, j, 0);
  }

  // Normal values, rounded to the storage type.
  HostMatrix& randomize(uint64_t seed, double spread = 1, double mean = 0) {
    std::mt19937_64 engine(seed);
    std::normal_distribution<double> normal(mean, spread);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < cols; ++j) set(i, j, normal(engine));
    return *this;
  }
  HostMatrix& fill(double value) {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < cols; ++j) set(i, j, value);
    return *this;
  }

  double operator()(int64_t i, int64_t j) const {
    return load_scalar(bytes.data(), dtype, i * ld + j);
  }
  void set(int64_t i, int64_t j, double value) {
    store_scalar(bytes.data(), dtype, i * ld + j, float(value));
  }
  bool gaps_untouched() const {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t b = (i * ld + cols) * size_of(dtype); b < (i + 1) * ld * size_of(dtype); ++b)
        if (bytes[size_t(b)] != 0x5a) return false;
    return true;
  }
  Matrix view() { return {bytes.data(), rows, cols, ld, dtype}; }
  ConstMatrix view() const { return {bytes.data(), rows, cols, ld, dtype}; }
  operator Matrix() { return view(); }
  operator ConstMatrix() const { return view(); }
  bool operator==(const HostMatrix& other) const { return bytes == other.bytes; }

  int64_t rows, cols, ld;
  DType dtype;
  std::vector<char> bytes;
};

// Relative rounding of a storage type: half a unit in the last place.
inline double rounding(DType t) {
  return t == DType::F32 ? 0x1p-24 : t == DType::BF16 ? 0x1p-8 : 0x1p-11;
}

// Expects y(i, j) within absolute + relative * |want|.
inline void expect_near(const HostMatrix& y, const std::function<double(int64_t, int64_t)>& want,
                        double absolute, double relative) {
  for (int64_t i = 0; i < y.rows; ++i)
    for (int64_t j = 0; j < y.cols; ++j) {
      const double w = want(i, j);
      ASSERT_NEAR(y(i, j), w, absolute + relative * std::abs(w)) << "at (" << i << ", " << j << ")";
    }
}

}  // namespace lorashard
