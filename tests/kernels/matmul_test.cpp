#include "kernels/matmul.h"

#include <array>
#include <thread>

#include "kernels/matmul_paths.h"
#include "tests/kernels/reference.h"

namespace lorashard {
namespace {

struct Shape {
  int64_t m, n, k;
};

void PrintTo(const Shape& s, std::ostream* out) { *out << s.m << "x" << s.n << "x" << s.k; }

// Storage of x, w and y.
using Types = std::tuple<DType, DType, DType>;

class Matmul : public testing::TestWithParam<std::tuple<Shape, Types>> {};

// y = alpha op(a) op(b) + beta y against sums in double.
void check_gemms(const Shape& s, DType at, DType bt, DType yt, GemmPath path, int threads) {
  Stream stream(threads);
  for (int64_t pad : {0, 3})
    for (auto [alpha, beta] : {std::pair{1.0f, 0.0f}, {1.0f, 1.0f}, {0.5f, -2.0f}})
      for (char form : {'t', 'n', 'w'}) {  // nt, nn, tn
        if (form == 'w' && yt != DType::F32) continue;
        HostMatrix a(form == 'w' ? s.k : s.m, form == 'w' ? s.m : s.k, at, pad);
        HostMatrix b(form == 't' ? s.n : s.k, form == 't' ? s.k : s.n, bt, pad);
        HostMatrix y(s.m, s.n, yt, pad);
        a.randomize(1), b.randomize(2);
        beta == 0 ? y.fill(NAN) : y.randomize(3);  // beta = 0 must not read y
        const HostMatrix before = y;
        if (form == 't') matmul_nt(stream, y, a, b, alpha, beta, path);
        if (form == 'n') matmul_nn(stream, y, a, b, alpha, beta, path);
        if (form == 'w') matmul_tn(stream, y, a, b, alpha, beta, path);
        // Rounding of fp32 sums of k products of unit normals grows as their norm, sqrt(k), times
        // a small multiple of sqrt(k) roundings; the output is rounded once.
        expect_near(
            y,
            [&](int64_t i, int64_t j) {
              double sum = 0;
              for (int64_t p = 0; p < s.k; ++p)
                sum += (form == 'w' ? a(p, i) : a(i, p)) * (form == 't' ? b(j, p) : b(p, j));
              return alpha * sum + (beta == 0 ? 0 : beta * before(i, j));
            },
            4e-7 * (double(s.k) + 4), rounding(yt) * 1.01);
        EXPECT_TRUE(y.gaps_untouched());
      }
}

TEST_P(Matmul, AgreesWithDefinition) {
  const auto& [shape, types] = GetParam();
  const auto [x, w, y] = types;
  for (int threads : {1, 2}) check_gemms(shape, x, w, y, GemmPath::AUTO, threads);
  check_gemms(shape, x, w, y, GemmPath::WIDEN, 2);
}

const DType F = DType::F32, B = DType::BF16, H = DType::F16;

INSTANTIATE_TEST_SUITE_P(
    Shapes, Matmul,
    testing::Combine(testing::Values(Shape{1, 1, 1}, Shape{3, 5, 7}, Shape{1, 130, 64},
                                     Shape{65, 8, 96}, Shape{65, 96, 8}, Shape{8, 70, 129},
                                     Shape{70, 33, 48}, Shape{0, 4, 4}, Shape{4, 0, 4},
                                     Shape{4, 6, 0}),
                     testing::Values(Types{F, F, F}, Types{F, B, F}, Types{F, H, F}, Types{B, B, B},
                                     Types{B, B, F}, Types{B, F, B}, Types{B, F, F},
                                     Types{F, F, B})));

// The result is rounded to y's type before the bias is added, and after it.
TEST(MatmulBias, AgreesWithDefinition) {
  for (const Shape& s : {Shape{3, 5, 7}, Shape{65, 8, 96}, Shape{1, 130, 64}, Shape{4, 6, 0},
                         Shape{0, 4, 4}, Shape{300, 90, 33}})
    for (const auto& [xt, wt, yt, bias_type] :
         {std::array{F, F, F, F}, {F, B, F, B}, {B, B, B, B}, {B, B, F, H}, {F, H, F, H}})
      for (const int threads : {1, 3}) {
        Stream stream(threads);
        HostMatrix x(s.m, s.k, xt), w(s.n, s.k, wt), bias(1, s.n, bias_type), y(s.m, s.n, yt, 3);
        HostMatrix wt_of(s.k, s.n, wt), other(s.m, s.n, yt, 3);
        x.randomize(1), w.randomize(2), bias.randomize(3, 3), y.fill(NAN), other.fill(NAN);
        for (int64_t j = 0; j < s.n; ++j)
          for (int64_t p = 0; p < s.k; ++p) wt_of.set(p, j, w(j, p));
        matmul_nt_bias(stream, y, x, w, bias);
        matmul_nn_bias(stream, other, x, wt_of, bias);
        const double step = rounding(yt) * 1.01;
        for (int64_t i = 0; i < s.m; ++i)
          for (int64_t j = 0; j < s.n; ++j) {
            double sum = 0;
            for (int64_t p = 0; p < s.k; ++p) sum += x(i, p) * w(j, p);
            const double want = sum + bias(0, j);
            for (const HostMatrix* got : {&y, &other})
              ASSERT_NEAR((*got)(i, j), want,
                          4e-7 * (double(s.k) + 4) + step * (std::abs(sum) + std::abs(want)));
          }
        EXPECT_TRUE(y.gaps_untouched() && other.gaps_untouched());
      }
}

// More than one tile in each direction.
TEST(MatmulTiles, Agree) {
  check_gemms({2, 300, 4100}, F, B, F, GemmPath::WIDEN, 2);
  check_gemms({280, 2, 4100}, B, F, B, GemmPath::WIDEN, 2);
}

// The primitive, which bf16 takes on processors with bf16 units, serves fp32 everywhere.
TEST(MatmulPrimitive, HonoursStridesAndFactors) {
  for (Shape s : {Shape{3, 5, 7}, Shape{70, 33, 48}, Shape{1, 130, 64}}) {
    check_gemms(s, F, F, F, GemmPath::PRIMITIVE, 2);
    if (bf16_gemms_are_native()) {
      check_gemms(s, B, B, F, GemmPath::PRIMITIVE, 2);
      check_gemms(s, B, B, B, GemmPath::PRIMITIVE, 2);
    }
  }
}

TEST(Matmul, SameBitsWhenRepeated) {
  Stream stream(2);
  HostMatrix x(33, 200, B), w(150, 200, B), y(33, 150, B), again(33, 150, B);
  x.randomize(1), w.randomize(2);
  matmul_nt(stream, y, x, w);
  matmul_nt(stream, again, x, w);
  EXPECT_EQ(y, again);
}

// Ranks run as threads in tests, each with a Stream of its own.
TEST(Matmul, StreamsInSeveralThreads) {
  HostMatrix x(130, 64, F), w(70, 64, B);
  x.randomize(1), w.randomize(2);
  std::vector<HostMatrix> y(4, HostMatrix(130, 70, F));
  std::vector<std::thread> ranks;
  for (HostMatrix& mine : y)
    ranks.emplace_back([&] {
      Stream stream(2);
      for (int i = 0; i < 20; ++i) matmul_nt(stream, mine, x, w);
    });
  for (std::thread& t : ranks) t.join();
  for (const HostMatrix& other : y) EXPECT_EQ(y[0], other);
}

}  // namespace
}  // namespace lorashard
