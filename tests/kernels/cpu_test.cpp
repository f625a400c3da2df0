// What holds for each instruction set: conversions bit for bit, the vector functions' errors, and
// the same results from every target up to rounding.
#include "kernels/cpu/table.h"

#include <algorithm>
#include <bit>

#include "kernels/cpu/attention_task.h"
#include "tests/kernels/reference.h"

namespace lorashard {
namespace {

std::vector<const CpuKernels*> targets() {
  std::vector<const CpuKernels*> found;
  for (CpuTarget t : {CpuTarget::BASELINE, CpuTarget::AVX2, CpuTarget::AVX512})
    if (const CpuKernels* k = cpu_kernels(t)) found.push_back(k);
  return found;
}

// Floats of every exponent and many fractions, with the ties, limits and NaN.
std::vector<float> many_floats() {
  std::vector<float> x{0.0f,     -0.0f,      INFINITY, -INFINITY,    NAN,
                       -NAN,     65504.0f,   65519.9f, 65520.0f,     0x1p-24f,
                       0x1p-25f, 0x1.8p-25f, 0x1p-14f, 0x1.ffcp-15f, 3.4e38f};
  for (uint64_t u = 0; u < (uint64_t{1} << 32); u += 9973)
    x.push_back(std::bit_cast<float>(uint32_t(u)));
  // Exactly half-way between neighbours of bf16 and of f16.
  for (uint32_t u = 0x3f008000; u < 0x43000000; u += 0x10000) x.push_back(std::bit_cast<float>(u));
  for (uint32_t u = 0x33001000; u < 0x48000000; u += 0x12000) x.push_back(std::bit_cast<float>(u));
  return x;
}

TEST(FloatTypes, KnownValues) {
  EXPECT_EQ(float_to_bf16(1.0f), 0x3f80);
  EXPECT_EQ(float_to_bf16(std::bit_cast<float>(0x3f808000u)), 0x3f80);  // ties to even
  EXPECT_EQ(float_to_bf16(std::bit_cast<float>(0x3f818000u)), 0x3f82);
  EXPECT_EQ(float_to_bf16(3.4e38f), 0x7f80);
  EXPECT_EQ(float_to_f16(1.0f), 0x3c00);
  EXPECT_EQ(float_to_f16(65504.0f), 0x7bff);
  EXPECT_EQ(float_to_f16(65520.0f), 0x7c00);
  EXPECT_EQ(float_to_f16(0x1p-24f), 0x0001);
  EXPECT_EQ(float_to_f16(0x1p-25f), 0x0000);
  EXPECT_EQ(float_to_f16(-0x1.8p-25f), 0x8001);
  EXPECT_TRUE(std::isnan(bf16_to_float(float_to_bf16(NAN))));
  EXPECT_TRUE(std::isnan(f16_to_float(float_to_f16(NAN))));
  // Every 16-bit value survives the way there and back.
  for (uint32_t h = 0; h < 0x10000; ++h) {
    const float b = bf16_to_float(uint16_t(h)), f = f16_to_float(uint16_t(h));
    if (!std::isnan(b)) {
      ASSERT_EQ(float_to_bf16(b), h);
    }
    if (!std::isnan(f)) {
      ASSERT_EQ(float_to_f16(f), h);
    }
  }
}

TEST(CpuTargets, ConvertAsTheScalarFunctions) {
  const std::vector<float> x = many_floats();
  const int64_t n = int64_t(x.size());
  for (const CpuKernels* k : targets())
    for (DType t : {DType::BF16, DType::F16}) {
      std::vector<uint16_t> y(x.size());
      k->convert(y.data(), t, x.data(), DType::F32, n);
      std::vector<float> back(x.size());
      k->convert(back.data(), DType::F32, y.data(), t, n);
      for (size_t i = 0; i < x.size(); ++i) {
        const uint16_t want = t == DType::BF16 ? float_to_bf16(x[i]) : float_to_f16(x[i]);
        ASSERT_EQ(y[i], want) << k->name << " " << x[i];
        const float wide = t == DType::BF16 ? bf16_to_float(want) : f16_to_float(want);
        ASSERT_EQ(std::bit_cast<uint32_t>(back[i]), std::bit_cast<uint32_t>(wide)) << k->name;
      }
    }
}

// Distance in units of the last place of `want`.
double ulps(float got, double want) {
  const double unit = std::ldexp(1.0, std::ilogb(want) - 23);
  return std::abs(double(got) - want) / unit;
}

// softmax_gradient with lse 0 and factor 1 is exp.
TEST(CpuTargets, ExpIsWithinTwoUlp) {
  std::vector<float> x;
  for (float v = -87.3f; v < 88.37f; v += 0.00037f) x.push_back(v);
  for (const CpuKernels* k : targets()) {
    std::vector<float> y = x;
    k->softmax_gradient(y.data(), DType::F32, int64_t(y.size()), 0, 1);
    double worst = 0;
    for (size_t i = 0; i < x.size(); ++i)
      worst = std::max(worst, ulps(y[i], std::exp(double(x[i]))));
    EXPECT_LT(worst, 2) << k->name;
    RecordProperty(std::string("exp_ulp_") + k->name, std::to_string(worst));
    float special[] = {-INFINITY, -1e30f, -88, 0, NAN, 1e30f};
    k->softmax_gradient(special, DType::F32, 6, 0, 1);
    EXPECT_EQ(special[0], 0);
    EXPECT_EQ(special[1], 0);
    EXPECT_EQ(special[2], 0);
    EXPECT_EQ(special[3], 1);
    EXPECT_TRUE(std::isnan(special[4]));
    EXPECT_GT(special[5], 2e38f);
  }
}

// Every target runs every kernel; they differ in the order of sums and in contraction alone.
TEST(CpuTargets, AgreeWithEachOther) {
  const CpuKernels& base = *cpu_kernels(CpuTarget::BASELINE);
  const int64_t d = 77, keys = 100, queries = 90;
  const auto values = [](int64_t n, uint64_t seed) {
    std::mt19937_64 engine(seed);
    std::normal_distribution<float> normal;
    std::vector<float> v(static_cast<size_t>(n));
    for (float& x : v) x = normal(engine);
    return v;
  };
  const auto all = [&](const CpuKernels& k) {
    std::vector<float> out;
    const auto keep = [&](const std::vector<float>& v) {
      out.insert(out.end(), v.begin(), v.end());
    };
    const auto x = values(2 * d, 1), y = values(2 * d, 2), gain = values(d, 3);
    std::vector<float> z(size_t(2 * d)), w(size_t(2 * d)), rstd(2);
    k.rms_norm_forward(z.data(), DType::F32, rstd.data(), x.data(), DType::F32, gain.data(), d, 2,
                       1e-6f);
    keep(z), keep(rstd);
    k.rms_norm_backward(z.data(), DType::F32, y.data(), DType::F32, x.data(), DType::F32,
                        rstd.data(), gain.data(), d, 2, false);
    keep(z);
    k.layer_norm_forward(z.data(), DType::F32, rstd.data(), x.data(), DType::F32, gain.data(),
                         y.data(), d, 1e-6f);
    keep(z), keep(rstd);
    k.layer_norm_backward(z.data(), DType::F32, y.data(), DType::F32, x.data(), DType::F32,
                          rstd.data(), gain.data(), d, false);
    keep(z);
    k.add(z.data(), DType::F32, x.data(), DType::F32, y.data(), DType::F32, gain.data(), d);
    keep(z);
    z = x;
    k.rope(z.data(), DType::F32, 2, d, 38, y.data(), false);
    keep(z);
    for (Activation f : {Activation::SILU, Activation::GELU, Activation::GELU_TANH}) {
      k.activation_forward(z.data(), x.data(), y.data(), DType::F32, d, f);
      keep(z);
      k.activation_backward(z.data(), w.data(), y.data(), x.data(), x.data(), DType::F32, d, f);
      keep(z), keep(w);
    }
    k.dropout(z.data(), DType::F32, x.data(), DType::F32, 1, 2, 3, 5, d, 1 << 23, 2, false);
    keep(z);
    k.dot_rows(z.data(), x.data(), y.data(), DType::F32, 9, 15, 27);
    keep(z);
    k.row_max_sum(x.data(), DType::F32, d, &z[0], &z[1]);
    k.scale_add(z.data() + 2, DType::F32, x.data(), 2, 3, d);
    keep(z);
    std::vector<float> m = values(d, 4), v(size_t(d), 0.5f), p = x;
    k.adamw(p.data(), m.data(), v.data(), y.data(), d,
            {.learning_rate = 0.1f,
             .beta1 = 0.9f,
             .beta2 = 0.99f,
             .epsilon = 1e-8f,
             .weight_decay = 0.1f,
             .step = 3,
             .gradient_scale = 1});
    keep(p), keep(m), keep(v);

    const auto q = values(queries * d, 5), kk = values(keys * d, 6), vv = values(keys * d, 7);
    const auto g = values(queries * d, 8);
    std::vector<float> o(q.size()), lse(static_cast<size_t>(queries)), dq(q.size()), dk(kk.size()),
        dv(kk.size());
    AttentionTask t{};
    t.heads = 1, t.head_dim = d, t.queries = queries, t.keys = keys;
    t.row_end = queries, t.key_end = keys, t.scale = 0.1f, t.window = 50;
    const auto in = [&](const std::vector<float>& a, int64_t rows) {
      return const_matrix(a.data(), rows, d, DType::F32);
    };
    const auto to = [&](std::vector<float>& a, int64_t rows) {
      return matrix(a.data(), rows, d, DType::F32);
    };
    t.q = in(q, queries), t.k = in(kk, keys), t.v = in(vv, keys), t.d_o = in(g, queries);
    t.o = t.write_o = to(o, queries),
    t.lse = t.write_lse = matrix(lse.data(), queries, 1, DType::F32);
    t.dq = to(dq, queries), t.dk = to(dk, keys), t.dv = to(dv, keys);
    std::vector<float> scratch(size_t(attention_scratch(t, true)) + 16);
    k.attention_forward(t, scratch.data());
    k.attention_backward(t, scratch.data());
    keep(o), keep(lse), keep(dq), keep(dk), keep(dv);
    return out;
  };
  const std::vector<float> want = all(base), squares = values(1001, 9);
  for (const CpuKernels* k : targets()) {
    const std::vector<float> got = all(*k);
    for (size_t i = 0; i < want.size(); ++i)
      ASSERT_NEAR(got[i], want[i], 5e-6 + 5e-6 * std::abs(want[i])) << k->name << " " << i;
    // Exact products and sixteen fixed sums: the same bits everywhere.
    EXPECT_EQ(k->sum_of_squares(squares.data(), 1001), base.sum_of_squares(squares.data(), 1001));
  }
}

TEST(Stream, ScratchIsAlignedAndGrows) {
  Stream stream(2);
  void* small = stream.scratch(ScratchSlot::GemmA, 10);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(small) % 64, 0u);
  EXPECT_EQ(stream.scratch(ScratchSlot::GemmA, 100), small);
  auto* large = static_cast<char*>(stream.scratch(ScratchSlot::GemmA, 5 << 20));
  large[(5 << 20) - 1] = 1;
  EXPECT_EQ(stream.scratch(ScratchSlot::GemmA, 10), large);  // never shrinks
  EXPECT_NE(stream.scratch(ScratchSlot::GemmB, 10), large);
}

TEST(Buffer, IsZeroAlignedAndMoves) {
  Stream stream(1);
  for (size_t bytes : {size_t{0}, size_t{1}, size_t{5000}, size_t{9} << 20}) {
    Buffer b(stream, bytes);
    EXPECT_EQ(b.bytes(), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(b.data()) % 64, 0u);
    const auto* p = b.as<const char>();
    EXPECT_TRUE(std::all_of(p, p + bytes, [](char c) { return c == 0; }));
    Buffer c = std::move(b);
    EXPECT_EQ(c.as<const char>(), p);
    EXPECT_EQ(b.data(), nullptr);
    b = std::move(c);
    EXPECT_EQ(b.as<const char>(), p);
  }
}

TEST(Buffer, SaysWhenMemoryIsOut) {
  Stream stream(1);
  EXPECT_THROW(Buffer(stream, size_t{1} << 60), std::runtime_error);
  EXPECT_THROW(Buffer(stream, SIZE_MAX), std::runtime_error);
}

TEST(Stream, TakesTheCpusTheProcessMayUse) {
  EXPECT_GE(Stream().threads(), 1);
  EXPECT_EQ(Stream(5).threads(), 5);
}

}  // namespace
}  // namespace lorashard
