// LoRA's GEMMs with dropout against sums in double over the mask's definition.
#include "kernels/lora_dropout.h"

#include "tests/kernels/lora_dropout_reference.h"

namespace lorashard {
namespace {

const DType F = DType::F32, B = DType::BF16;

TEST(LoraDropout, AgreesWithDefinition) {
  for (const int threads : {1, 3})
    for (const LoraDropoutShape& s : lora_dropout_shapes())
      for (const DType type : {F, B}) {
        SCOPED_TRACE(describe(s));
        Stream stream(threads);
        const LoraDropoutCase c(s, type);
        HostMatrix u(s.rows, s.lora_rank, F, s.pad), da = c.da, dx = c.dx;
        lora_dropout_forward(stream, u, c.x, c.a, c.mask());
        lora_dropout_wgrad(stream, da, c.t, c.x, c.mask());
        lora_dropout_dgrad(stream, dx, c.t, c.a, c.mask());
        c.expect_results(u, da, dx, F);
      }
}

// Every number of threads gives the same bits.
TEST(LoraDropout, DoesNotDependOnThreads) {
  for (const DType type : {F, B})
    for (const LoraDropoutShape& s : {LoraDropoutShape{.rows = 301, .cols = 777, .lora_rank = 20},
                                      LoraDropoutShape{.rows = 64, .cols = 200, .lora_rank = 3}}) {
      const LoraDropoutCase c(s, type);
      std::vector<HostMatrix> first;
      for (const int threads : {1, 2, 3, 5, 8}) {
        Stream stream(threads);
        HostMatrix u(s.rows, s.lora_rank, F, s.pad), da = c.da, dx = c.dx;
        lora_dropout_forward(stream, u, c.x, c.a, c.mask());
        lora_dropout_wgrad(stream, da, c.t, c.x, c.mask());
        lora_dropout_dgrad(stream, dx, c.t, c.a, c.mask());
        if (first.empty()) first = {u, da, dx};
        EXPECT_TRUE(u == first[0]) << threads << " threads";
        EXPECT_TRUE(da == first[1]) << threads << " threads";
        EXPECT_TRUE(dx == first[2]) << threads << " threads";
      }
    }
}

// Slices of the columns, each with its first column, make the whole: the layouts of a
// row-parallel layer.
TEST(LoraDropout, SlicesMakeTheWhole) {
  const LoraDropoutShape s{.rows = 9, .cols = 60, .lora_rank = 5, .first_col = 8};
  const LoraDropoutCase c(s, F);
  Stream stream(1);
  HostMatrix da = c.da, dx = c.dx, u(s.rows, s.lora_rank, F), parts(s.rows, s.lora_rank, F);
  for (const auto& [begin, n] : {std::pair<int64_t, int64_t>{0, 23}, {23, 1}, {24, 36}}) {
    DropoutMask mask = c.mask();
    mask.first_col += begin;
    const ConstMatrix x = c.x, a = c.a;
    lora_dropout_forward(stream, u, x.col_range(begin, n), a.col_range(begin, n), mask);
    lora_dropout_wgrad(stream, da.view().col_range(begin, n), c.t, x.col_range(begin, n), mask);
    lora_dropout_dgrad(stream, dx.view().col_range(begin, n), c.t, a.col_range(begin, n), mask);
    for (int64_t i = 0; i < s.rows; ++i)
      for (int64_t j = 0; j < s.lora_rank; ++j) parts.set(i, j, parts(i, j) + u(i, j));
  }
  c.expect_results(parts, da, dx, F);
}

// Nothing to sum is 0, and adds nothing.
TEST(LoraDropout, Empty) {
  Stream stream(2);
  const LoraDropoutCase c({.rows = 3, .cols = 0, .lora_rank = 2}, F);
  HostMatrix u(3, 2, F);
  u.fill(NAN);
  lora_dropout_forward(stream, u, c.x, c.a, c.mask());
  expect_near(
      u, [](int64_t, int64_t) { return 0; }, 0, 0);
  const LoraDropoutCase none({.rows = 0, .cols = 4, .lora_rank = 2}, F);
  HostMatrix da = none.da;
  lora_dropout_wgrad(stream, da, none.t, none.x, none.mask());
  EXPECT_TRUE(da == none.da);
}

}  // namespace
}  // namespace lorashard
