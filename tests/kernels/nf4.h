// A small NF4 tensor for the tests of dequantisation, with its maxima plain and quantised.
#pragma once

#include <random>
#include <vector>

#include "kernels/dequantize.h"

namespace lorashard {

struct Nf4Tensor {
  Nf4Tensor(int64_t rows, int64_t cols, uint64_t seed) : rows(rows), cols(cols) {
    std::mt19937_64 engine(seed);
    std::uniform_int_distribution<int> byte(0, 255);
    std::uniform_real_distribution<float> positive(0.01f, 2);
    const auto count = [](int64_t n, int64_t unit) { return size_t((n + unit - 1) / unit); };
    codes.resize(count(rows * cols, 2));
    for (uint8_t& c : codes) c = uint8_t(byte(engine));
    absmax.resize(count(rows * cols, kNf4Block));
    for (float& a : absmax) a = positive(engine);
    absmax_codes.resize(absmax.size());
    for (uint8_t& c : absmax_codes) c = uint8_t(byte(engine));
    for (int i = 0; i < 256; ++i) absmax_levels.push_back(float(i - 127) / 128);
    absmax_scales.resize(count(int64_t(absmax.size()), kNf4AbsmaxBlock));
    for (float& a : absmax_scales) a = positive(engine);
  }

  // With the maxima plain, or quantised.
  Nf4Matrix matrix(bool nested) const {
    Nf4Matrix m;
    m.codes = codes.data();
    m.rows = rows;
    m.cols = m.ld = cols;
    if (nested) {
      m.absmax_codes = absmax_codes.data();
      m.absmax_levels = absmax_levels.data();
      m.absmax_scales = absmax_scales.data();
      m.absmax_offset = 0.75f;
    } else {
      m.absmax = absmax.data();
    }
    return m;
  }

  int64_t rows, cols;
  std::vector<uint8_t> codes;
  std::vector<float> absmax;
  std::vector<uint8_t> absmax_codes;
  std::vector<float> absmax_levels, absmax_scales;
};

}  // namespace lorashard
