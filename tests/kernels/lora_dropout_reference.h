// Cases for the tests of LoRA's GEMMs with dropout, and what their results must be: sums in
// double over the mask as kernels/dropout.h defines it.
#pragma once

#include "kernels/lora_dropout.h"
#include "kernels/random.h"
#include "tests/kernels/reference.h"

namespace lorashard {

struct LoraDropoutShape {
  int64_t rows, cols, lora_rank;
  int64_t pad = 0;        // ld - cols, of every matrix
  int64_t first_col = 0;  // of the mask
  float p = 0.3f;
};

inline std::string describe(const LoraDropoutShape& s) {
  return std::to_string(s.rows) + " x " + std::to_string(s.cols) + ", lora_rank " +
         std::to_string(s.lora_rank) + ", ld + " + std::to_string(s.pad) + ", from column " +
         std::to_string(s.first_col) + ", p " + std::to_string(s.p);
}

// Tiny and ragged ones, lora_rank on both sides of the tiles, slices that begin within a group of
// words, pads that keep and that break the alignment of vectors.
inline const std::vector<LoraDropoutShape>& lora_dropout_shapes() {
  static const std::vector<LoraDropoutShape> list = {
      {1, 1, 1},
      {1, 3, 4, 0, 7},
      {5, 64, 8, 8},
      {33, 70, 8, 3, 64},
      {130, 72, 16, 8, int64_t{1} << 34},
      {17, 129, 16, 1, 6},
      {47, 257, 17, 0, 1},
      {130, 320, 4, 0, 0, 0.9f},
      {70, 96, 33, 5, 3},
      {20, 136, 64, 8, 0, 0.0f},
      {35, 68, 70, 4, 2},
      {19, 40, 256, 0, 8},
      {300, 24, 2, 0, 4},
  };
  return list;
}

// Operands of the three GEMMs, and what da and dx hold before they are added to.
struct LoraDropoutCase {
  LoraDropoutCase(const LoraDropoutShape& shape, DType type)
      : s(shape),
        x(s.rows, s.cols, type, s.pad),
        a(s.lora_rank, s.cols, DType::F32, s.pad),
        t(s.rows, s.lora_rank, DType::F32, s.pad),
        da(s.lora_rank, s.cols, DType::F32, s.pad),
        dx(s.rows, s.cols, type, s.pad) {
    x.randomize(1), a.randomize(2), t.randomize(3), da.randomize(4), dx.randomize(5);
    // Beyond 32 bits, and not in order.
    for (int64_t i = 0; i < s.rows; ++i)
      keys.push_back((uint64_t(i) << 33) + uint64_t((i * 37) % 101));
  }
  DropoutMask mask() const { return {kSeed, kSite, keys.data(), s.first_col, s.p}; }
  // The mask's element: 0 or 1 / (1 - p).
  double kept(int64_t i, int64_t j) const {
    const auto column = uint64_t(s.first_col + j);
    const auto words = random_words(kSeed, Purpose::Dropout, keys[size_t(i)],
                                    (uint64_t{kSite} << 32) + column / 4);
    return uniform01(words[column % 4]) >= s.p ? 1 / (1 - double(s.p)) : 0;
  }
  // Expects the results of the three GEMMs; A and t count as if rounded to `factor_type`.
  void expect_results(const HostMatrix& u, const HostMatrix& da_after, const HostMatrix& dx_after,
                      DType factor_type) const {
    std::vector<double> d(size_t(s.rows * s.cols));
    for (int64_t i = 0; i < s.rows; ++i)
      for (int64_t j = 0; j < s.cols; ++j) d[size_t(i * s.cols + j)] = kept(i, j);
    const HostMatrix ra = as(a, factor_type), rt = as(t, factor_type);
    const auto mask_at = [&](int64_t i, int64_t j) { return d[size_t(i * s.cols + j)]; };
    // Random signs: errors of a sum grow with its root, with room for its largest terms.
    const auto room = [&](int64_t depth) {
      return 1e-6 * (4 + 2 * std::sqrt(double(depth))) / (1 - double(s.p));
    };
    expect_near(
        u,
        [&](int64_t i, int64_t r) {
          double sum = 0;
          for (int64_t j = 0; j < s.cols; ++j) sum += mask_at(i, j) * x(i, j) * ra(r, j);
          return sum;
        },
        room(s.cols), 1e-6);
    expect_near(
        da_after,
        [&](int64_t r, int64_t j) {
          double sum = da(r, j);
          for (int64_t i = 0; i < s.rows; ++i) sum += mask_at(i, j) * rt(i, r) * x(i, j);
          return sum;
        },
        room(s.rows), 1e-6);
    expect_near(
        dx_after,
        [&](int64_t i, int64_t j) {
          if (mask_at(i, j) == 0) return dx(i, j);
          double sum = 0;
          for (int64_t r = 0; r < s.lora_rank; ++r) sum += rt(i, r) * ra(r, j);
          return dx(i, j) + mask_at(i, j) * sum;
        },
        room(s.lora_rank), rounding(dx.dtype) * 1.01 + 1e-6);
    for (const HostMatrix* m : {&u, &da_after, &dx_after}) EXPECT_TRUE(m->gaps_untouched());
  }

  static constexpr uint64_t kSeed = 0xdeadbeefcafe0001ull;
  static constexpr uint32_t kSite = 0x80000007u;
  LoraDropoutShape s;
  HostMatrix x, a, t, da, dx;
  std::vector<uint64_t> keys;

 private:
  static HostMatrix as(const HostMatrix& m, DType type) {
    HostMatrix r(m.rows, m.cols, type);
    for (int64_t i = 0; i < m.rows; ++i)
      for (int64_t j = 0; j < m.cols; ++j) r.set(i, j, m(i, j));
    return r;
  }
};

}  // namespace lorashard
