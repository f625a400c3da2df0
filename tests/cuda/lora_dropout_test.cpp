// LoRA's GEMMs with dropout on the device, against their definition and the CPU.
#include "kernels/lora_dropout.h"

#include "tests/cuda/device.h"
#include "tests/kernels/lora_dropout_reference.h"

namespace lorashard {
namespace {

const DType F = DType::F32, B = DType::BF16;

class LoraDropoutKernels : public DeviceTest {
 protected:
  // The three results on the device, in memory from element `shift` on.
  std::array<HostMatrix, 3> results(const LoraDropoutCase& c, int64_t shift) {
    HostMatrix none(c.s.rows, c.s.lora_rank, F, c.s.pad);
    none.fill(NAN);
    const DeviceMatrix x(device(), c.x, shift), a(device(), c.a, shift), t(device(), c.t, shift);
    DeviceMatrix u(device(), none, shift), da(device(), c.da, shift), dx(device(), c.dx, shift);
    const DeviceArray<uint64_t> keys(device(), c.keys);
    DropoutMask mask = c.mask();
    mask.row_keys = keys.data();
    lora_dropout_forward(device(), u, x, a, mask);
    lora_dropout_wgrad(device(), da, t, x, mask);
    lora_dropout_dgrad(device(), dx, t, a, mask);
    return {u.host(), da.host(), dx.host()};
  }
};
INSTANTIATE_TEST_SUITE_P(Orders, LoraDropoutKernels, all_orders(), order_name);

TEST_P(LoraDropoutKernels, AgreeWithDefinition) {
  for (const LoraDropoutShape& s : lora_dropout_shapes())
    for (const DType type : {F, B})
      for (const int64_t shift : {0, 1}) {
        SCOPED_TRACE(testing::Message() << describe(s) << ", from element " << shift);
        const LoraDropoutCase c(s, type);
        const auto [u, da, dx] = results(c, shift);
        c.expect_results(u, da, dx, type);
      }
}

// Sums long enough to be split between blocks: parts of whole steps and a last one that is short.
TEST_P(LoraDropoutKernels, SplitSums) {
  for (const LoraDropoutShape& s :
       {LoraDropoutShape{.rows = 40, .cols = 1100, .lora_rank = 9},
        LoraDropoutShape{.rows = 1030, .cols = 40, .lora_rank = 9},
        LoraDropoutShape{.rows = 530, .cols = 70, .lora_rank = 40, .pad = 3, .first_col = 5}})
    for (const DType type : {F, B}) {
      SCOPED_TRACE(describe(s));
      const LoraDropoutCase c(s, type);
      const auto [u, da, dx] = results(c, 0);
      c.expect_results(u, da, dx, type);
      const auto [u2, da2, dx2] = results(c, 0);
      EXPECT_TRUE(u == u2 && da == da2 && dx == dx2) << "not the same bits again";
    }
}

TEST_P(LoraDropoutKernels, AgreeWithTheCpu) {
  const LoraDropoutShape s{.rows = 50, .cols = 104, .lora_rank = 8, .first_col = 16};
  const LoraDropoutCase c(s, F);
  HostMatrix u(s.rows, s.lora_rank, F), da = c.da, dx = c.dx;
  lora_dropout_forward(cpu, u, c.x, c.a, c.mask());
  lora_dropout_wgrad(cpu, da, c.t, c.x, c.mask());
  lora_dropout_dgrad(cpu, dx, c.t, c.a, c.mask());
  const auto [du, dda, ddx] = results(c, 0);
  expect_matches(du, u, 3e-5, 1e-6);
  expect_matches(dda, da, 3e-5, 1e-6);
  expect_matches(ddx, dx, 3e-5, 1e-6);
}

TEST_P(LoraDropoutKernels, Empty) {
  for (const DType type : {F, B}) {
    const LoraDropoutCase flat({.rows = 3, .cols = 0, .lora_rank = 2}, type);
    expect_near(
        results(flat, 0)[0], [](int64_t, int64_t) { return 0; }, 0, 0);
    const LoraDropoutCase none({.rows = 0, .cols = 4, .lora_rank = 2}, type);
    EXPECT_TRUE(results(none, 0)[1] == none.da);
  }
}

}  // namespace
}  // namespace lorashard
