// Dequantisation against its definition.
#include "kernels/dequantize.h"

#include "tests/kernels/nf4.h"
#include "tests/kernels/reference.h"

namespace lorashard {
namespace {

const DType F = DType::F32, B = DType::BF16, H = DType::F16;

// x with Phi(x) = p, by bisection.
double normal_quantile(double p) {
  double low = -10, high = 10;
  for (int i = 0; i < 200; ++i) {
    const double middle = (low + high) / 2;
    (0.5 * std::erfc(-middle / std::sqrt(2.0)) < p ? low : high) = middle;
  }
  return low;
}

// QLoRA, appendix E: eight even steps of probability above 1/2 and seven below, up to 0.9677083.
TEST(Dequantize, Nf4LevelsAreNormalQuantiles) {
  const double tail = 0.9677083, top = normal_quantile(tail);
  for (int i = 0; i < 16; ++i) {
    double want = 0;
    if (i < 7) want = -normal_quantile(tail + (0.5 - tail) * i / 7) / top;
    if (i > 7) want = normal_quantile(tail + (0.5 - tail) * (15 - i) / 8) / top;
    EXPECT_NEAR(kNf4Levels[i], want, 2e-7) << i;  // they were first computed in fp32
  }
}

TEST(Dequantize, Nf4) {
  Stream stream(2);
  for (auto [rows, cols] : {std::pair<int64_t, int64_t>{1, 1}, {3, 64}, {5, 40}, {130, 200}})
    for (bool nested : {false, true})
      for (DType type : {F, B, H}) {
        const Nf4Tensor tensor(rows, cols, 1);
        HostMatrix y(rows, cols, type, 3);
        dequantize_nf4(stream, y, tensor.matrix(nested));
        expect_near(
            y,
            [&](int64_t i, int64_t j) {
              const auto e = size_t(i * cols + j), b = e / 64;
              const uint8_t byte = tensor.codes[e / 2];
              const double absmax = nested ? double(tensor.absmax_levels[tensor.absmax_codes[b]]) *
                                                     double(tensor.absmax_scales[b / 256]) +
                                                 0.75
                                           : double(tensor.absmax[b]);
              return kNf4Levels[e % 2 == 0 ? byte / 16 : byte % 16] * absmax;
            },
            // The maximum is rounded in fp32; F16 has subnormals.
            3e-7, rounding(type) * 1.01);
        EXPECT_TRUE(y.gaps_untouched());
      }
}

TEST(Dequantize, Nf4BlocksOfAMatrix) {
  Stream stream(1);
  const Nf4Tensor tensor(20, 37, 2);
  HostMatrix whole(20, 37, F), part(7, 11, F);
  dequantize_nf4(stream, whole, tensor.matrix(true));
  dequantize_nf4(stream, part, tensor.matrix(true).block(5, 7, 13, 11));
  expect_near(
      part, [&](int64_t i, int64_t j) { return whole(5 + i, 13 + j); }, 0, 0);
}

TEST(Dequantize, Int8) {
  Stream stream(2);
  std::vector<int8_t> codes;
  for (int i = 0; i < 130 * 50; ++i) codes.push_back(int8_t(i % 256 - 128));
  std::vector<float> scales;
  for (int i = 0; i < 130; ++i) scales.push_back(0.01f * float(i + 1));
  const ConstMatrix all{codes.data(), 130, 43, 50, DType::I8};
  for (DType type : {F, B, H}) {
    HostMatrix y(130, 43, type, 2);
    dequantize_int8(stream, y, all, scales.data());
    expect_near(
        y,
        [&](int64_t i, int64_t j) {
          return double(codes[size_t(i * 50 + j)]) * double(scales[size_t(i)]);
        },
        0, rounding(type) * 1.01);
    EXPECT_TRUE(y.gaps_untouched());
  }
}

}  // namespace
}  // namespace lorashard
