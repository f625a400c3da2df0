// Matrix products.
#include "kernels/matmul.h"
#include "trainer/selftest/kernel_checks.h"
#include "trainer/selftest/operand.h"

namespace lorashard::selftest {
namespace {

using Parts = std::vector<Part>;

struct ProductShape {
  int64_t m, n, k, pad;
};
constexpr ProductShape kProducts[] = {{32, 48, 64, 0}, {5, 7, 13, 3}, {1, 8, 200, 8}};

constexpr float kAlpha = 0.5f;

// Base weights are BF16 under F32 activations too.
Parts nt(Stream& s, DType type) {
  Parts parts;
  for (const DType weights : {type, DType::BF16})
    for (const auto& shape : kProducts) {
      const auto [m, n, k, pad] = shape;
      const float beta = pad == 0 ? 0 : 1;
      Operand y(s, m, n, type, 1, pad), x(s, m, k, type, 2, pad), w(s, n, k, weights, 3);
      matmul_nt(s, y, x, w, kAlpha, beta);
      parts.push_back(y.against([&, depth = shape.k](int64_t i, int64_t j) {
        double sum = 0;
        for (int64_t c = 0; c < depth; ++c) sum += x(i, c) * w(j, c);
        return kAlpha * sum + (beta == 0 ? 0 : beta * y(i, j));
      }));
    }
  return parts;
}

Parts nn(Stream& s, DType type) {
  Parts parts;
  for (const DType weights : {type, DType::BF16})
    for (const auto& shape : kProducts) {
      const auto [m, n, k, pad] = shape;
      const float beta = pad == 0 ? 0 : 1;
      Operand y(s, m, n, type, 1, pad), x(s, m, k, type, 2, pad), w(s, k, n, weights, 3);
      matmul_nn(s, y, x, w, kAlpha, beta);
      parts.push_back(y.against([&, depth = shape.k](int64_t i, int64_t j) {
        double sum = 0;
        for (int64_t c = 0; c < depth; ++c) sum += x(i, c) * w(c, j);
        return kAlpha * sum + (beta == 0 ? 0 : beta * y(i, j));
      }));
    }
  return parts;
}

Parts tn(Stream& s, DType type) {
  Parts parts;
  for (const auto& shape : kProducts) {
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

}  // namespace

void add_product_checks(std::vector<KernelCheck>& checks) {
  const std::pair<const char*, Parts (*)(Stream&, DType)> kAll[] = {
      {"matmul_nt", nt}, {"matmul_nn", nn}, {"matmul_tn", tn}};
  for (const auto& [name, run] : kAll)
    for (DType type : {DType::F32, DType::BF16})
      checks.push_back({name, type,
                        run == tn             ? 5e-6
                        : type == DType::BF16 ? 0x1p-8
                                              : 5e-6,
                        [run = run, type](Stream& s) { return run(s, type); }});
}

}  // namespace lorashard::selftest
