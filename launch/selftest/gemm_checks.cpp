// GEMM, LoRA's with dropout included.
#include <array>

#include "kernels/lora_dropout.h"
#include "kernels/matmul.h"
#include "kernels/random.h"
#include "launch/selftest/kernel_checks.h"
#include "launch/selftest/operand.h"

namespace lorashard::selftest {
namespace {

using Parts = std::vector<Part>;

struct GemmShape {
  int64_t m, n, k, pad;
};
constexpr GemmShape kGemms[] = {{32, 48, 64, 0}, {5, 7, 13, 3}, {1, 8, 200, 8}};

constexpr float kAlpha = 0.5f;

// y = alpha x W^T + beta y (W of (n, k)) or alpha x W + beta y (W of (k, n)). Base weights are BF16
// under F32 activations too.
template <bool kTransposed>
Parts by_weights(Stream& s, DType type) {
  Parts parts;
  for (const DType weights : {type, DType::BF16})
    for (const auto& [m, n, k, pad] : kGemms) {
      const float beta = pad == 0 ? 0 : 1;
      Operand y(s, m, n, type, 1, pad), x(s, m, k, type, 2, pad),
          w(s, kTransposed ? n : k, kTransposed ? k : n, weights, 3);
      (kTransposed ? matmul_nt : matmul_nn)(s, y, x, w, kAlpha, beta);
      parts.push_back(y.against([&, depth = k](int64_t i, int64_t j) {
        double sum = 0;
        for (int64_t c = 0; c < depth; ++c) sum += x(i, c) * (kTransposed ? w(j, c) : w(c, j));
        return kAlpha * sum + (beta == 0 ? 0 : beta * y(i, j));
      }));
    }
  return parts;
}

// x W^T + bias, or x W + bias. The bias is of y's type, which no backend rounds.
template <bool kTransposed>
Parts with_bias(Stream& s, DType type) {
  Parts parts;
  for (const auto& shape : kGemms) {
    const auto [m, n, k, pad] = shape;
    Operand y(s, m, n, type, 1, pad), x(s, m, k, type, 2, pad),
        w(s, kTransposed ? n : k, kTransposed ? k : n, DType::BF16, 3), bias(s, 1, n, type, 4);
    (kTransposed ? matmul_nt_bias : matmul_nn_bias)(s, y, x, w, bias);
    parts.push_back(y.against([&, depth = shape.k](int64_t i, int64_t j) {
      double sum = bias(0, j);
      for (int64_t c = 0; c < depth; ++c) sum += x(i, c) * (kTransposed ? w(j, c) : w(c, j));
      return sum;
    }));
  }
  return parts;
}

Parts tn(Stream& s, DType type) {
  Parts parts;
  for (const auto& shape : kGemms) {
    const auto [m, n, k, pad] = shape;
    const float beta = pad == 0 ? 0 : 1;
    Operand y(s, m, n, DType::F32, 1, pad), a(s, k, m, type, 2, pad), b(s, k, n, type, 3);
    matmul_tn(s, y, a, b, kAlpha, beta);
    parts.push_back(y.against([&, depth = shape.k](int64_t i, int64_t j) {
      double sum = 0;
      for (int64_t c = 0; c < depth; ++c) sum += a(c, i) * b(c, j);
      return kAlpha * sum + (beta == 0 ? 0 : beta * y(i, j));
    }));
  }
  return parts;
}

// A lora_rank on either side of a tile, and slices that begin within and on a group of random
// words.
Parts lora_dropped(Stream& s, DType type) {
  constexpr int64_t kRows = 37;
  constexpr float kP = 0.25f;
  Parts parts;
  for (const auto& [lora_rank, cols, first, pad] :
       {std::array<int64_t, 4>{8, 96, 8, 8}, {20, 45, 6, 3}, {64, 64, 0, 0}}) {
    Operand x(s, kRows, cols, type, 1, pad), a(s, lora_rank, cols, DType::F32, 2, pad),
        t(s, kRows, lora_rank, DType::F32, 3, pad), u(s, kRows, lora_rank, DType::F32, 4, pad),
        da(s, lora_rank, cols, DType::F32, 5, pad), dx(s, kRows, cols, type, 6, pad);
    // The device rounds factors to bf16 where activations are: give it values that are.
    for (Operand* factor : {&a, &t})
      factor->fill([&](int64_t i, int64_t j) { return double((i * 7 + j * 5) % 17 - 8) / 8; });
    std::vector<uint64_t> tokens;
    for (int64_t i = 0; i < kRows; ++i) tokens.push_back(1000 + uint64_t(i) * 17);
    Numbers<uint64_t> keys(s, tokens);
    const DropoutMask mask{7, 3, keys.device(), first, kP};
    lora_dropout_forward(s, u, x, a, mask);
    lora_dropout_wgrad(s, da, t, x, mask);
    lora_dropout_dgrad(s, dx, t, a, mask);
    const auto kept = [&, begin = first](int64_t i, int64_t j) {
      const auto column = uint64_t(begin + j);
      const auto words = random_words(mask.seed, Purpose::Dropout, tokens[size_t(i)],
                                      (uint64_t{mask.site} << 32) + column / 4);
      return uniform01(words[column % 4]) >= kP ? 1 / (1 - double(kP)) : 0;
    };
    parts.push_back(u.against([&, depth = cols](int64_t i, int64_t r) {
      double sum = 0;
      for (int64_t j = 0; j < depth; ++j) sum += kept(i, j) * x(i, j) * a(r, j);
      return sum;
    }));
    parts.push_back(da.against([&](int64_t r, int64_t j) {
      double sum = da(r, j);
      for (int64_t i = 0; i < kRows; ++i) sum += kept(i, j) * t(i, r) * x(i, j);
      return sum;
    }));
    parts.push_back(dx.against([&, depth = lora_rank](int64_t i, int64_t j) {
      double sum = 0;
      for (int64_t r = 0; r < depth; ++r) sum += t(i, r) * a(r, j);
      return dx(i, j) + kept(i, j) * sum;
    }));
  }
  return parts;
}

}  // namespace

void add_gemm_checks(std::vector<KernelCheck>& checks) {
  const std::pair<const char*, Parts (*)(Stream&, DType)> kAll[] = {
      {"matmul_nt", by_weights<true>},
      {"matmul_nt_bias", with_bias<true>},
      {"matmul_nn", by_weights<false>},
      {"matmul_nn_bias", with_bias<false>},
      {"matmul_tn", tn},
      {"lora_dropout", lora_dropped}};
  for (const auto& [name, run] : kAll)
    for (DType type : {DType::F32, DType::BF16})
      checks.push_back({name, type,
                        run == tn || type == DType::F32 ? 5e-6
                        : run == with_bias<true> || run == with_bias<false>
                            ? 0x1p-7  // the CPU rounds twice
                            : 0x1p-8,
                        [run = run, type](Stream& s) { return run(s, type); }});
}

}  // namespace lorashard::selftest
