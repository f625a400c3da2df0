// The norms on the device, against their CPU references.
#include "kernels/layer_norm.h"
#include "kernels/rms_norm.h"
#include "tests/cuda/device.h"

namespace lorashard {
namespace {

const DType F = DType::F32, B = DType::BF16, H = DType::F16;

class NormKernels : public DeviceTest {};
INSTANTIATE_TEST_SUITE_P(Orders, NormKernels, all_orders(), order_name);

struct NormCase {
  int64_t rows, groups, d, pad, shift;
};
// Whole rows and heads; parts of a warp, whole warps and blocks; odd widths and unaligned rows.
const std::vector<NormCase> kNormCases = {
    {1, 1, 1, 0, 0},   {3, 1, 7, 2, 0},    {2, 5, 3, 0, 0},    {5, 3, 16, 0, 0},
    {3, 9, 64, 0, 0},  {7, 2, 128, 8, 0},  {3, 4, 128, 3, 0},  {3, 4, 128, 0, 1},
    {2, 1, 576, 0, 0}, {2, 1, 1030, 2, 0}, {2, 1, 2048, 0, 0}, {1, 1, 4099, 0, 0},
    {40, 1, 24, 0, 0}, {2, 2, 1500, 4, 2}};

TEST_P(NormKernels, Rms) {
  for (const NormCase& c : kNormCases)
    for (auto [type, gain_type] : {std::pair{F, F}, {F, B}, {B, B}, {B, F}, {B, H}}) {
      const Shape s{c.rows, c.groups * c.d, c.pad, c.shift};
      SCOPED_TRACE(testing::Message() << describe(s) << ", " << c.groups << " groups");
      const float eps = 1e-3f, offset = gain_type == B ? 1 : 0;
      const HostMatrix x = random_matrix(s, type, 1), dy = random_matrix(s, type, 2),
                       gain = HostMatrix(1, c.d, gain_type).randomize(3, 0.2, 1);
      HostMatrix want(s.rows, s.cols, type, s.pad), want_rstd(s.rows, c.groups, F, 1);
      DeviceMatrix y(device(), want, s.shift), rstd(device(), want_rstd),
          dx_in(device(), x, s.shift), d_gain(device(), gain);
      rms_norm_forward(cpu, want, want_rstd, x, gain, eps, offset);
      rms_norm_forward(device(), y, rstd, dx_in, d_gain, eps, offset);
      // Sums of the same positive squares in another order.
      expect_matches(rstd.host(), want_rstd, 0, 2e-6);
      expect_matches(y.host(), want, 0, neighbour(type) + 3e-6);

      DeviceMatrix in_place(device(), x, s.shift);
      rms_norm_forward(device(), in_place, {}, in_place, d_gain, eps, offset);
      EXPECT_EQ(in_place.host(), y.host());

      // dx is a difference of terms of the size of rstd times products of normal values.
      const double size = 100;
      HostMatrix want_gain = HostMatrix(1, c.d, F).randomize(5);
      DeviceMatrix gain_gradient(device(), want_gain), dy_in(device(), dy, s.shift);
      rms_norm_gain_backward(cpu, want_gain, dy, x, want_rstd);
      rms_norm_gain_backward(device(), gain_gradient, dy_in, dx_in, rstd);
      // Sums in double, of products with an rstd that differs in its last bits.
      expect_matches(gain_gradient.host(), want_gain, 1e-3, 3e-6);
      HostMatrix want_dx = random_matrix(s, type, 4);
      DeviceMatrix dx(device(), want_dx, s.shift), d_dy(device(), dy, s.shift);
      rms_norm_backward(cpu, want_dx, dy, x, want_rstd, gain, offset, true);
      rms_norm_backward(device(), dx, d_dy, dx_in, rstd, d_gain, offset, true);
      expect_matches(dx.host(), want_dx, 1e-6 * size, neighbour(type));
      HostMatrix aliased = dy;
      rms_norm_backward(cpu, aliased, aliased, x, want_rstd, gain, offset, false);
      rms_norm_backward(device(), d_dy, d_dy, dx_in, rstd, d_gain, offset, false);
      expect_matches(d_dy.host(), aliased, 1e-6 * size, neighbour(type));
    }
}

TEST_P(NormKernels, RmsOfMixedTypes) {
  const Shape s{3, 264, 8};
  const HostMatrix x = random_matrix(s, F, 1), gain = HostMatrix(1, 264, H).randomize(2, 0.2, 1),
                   dy = random_matrix(s, F, 3);
  HostMatrix want(3, 264, B, 4), want_rstd(3, 1, F), want_dx(3, 264, B);
  DeviceMatrix y(device(), want), rstd(device(), want_rstd), dx(device(), want_dx),
      d_x(device(), x), d_dy(device(), dy), d_gain(device(), gain);
  rms_norm_forward(cpu, want, want_rstd, x, gain, 1e-5f, 0);
  rms_norm_forward(device(), y, rstd, d_x, d_gain, 1e-5f, 0);
  expect_matches(y.host(), want, 0, neighbour(B));
  rms_norm_backward(cpu, want_dx, dy, x, want_rstd, gain, 0, false);
  rms_norm_backward(device(), dx, d_dy, d_x, rstd, d_gain, 0, false);
  expect_matches(dx.host(), want_dx, 1e-5, neighbour(B));
}

TEST_P(NormKernels, Layer) {
  for (const NormCase& c : kNormCases)
    for (auto [type, weight_type] : {std::pair{F, F}, {F, B}, {B, B}, {B, H}})
      for (bool with_bias : {false, true}) {
        const Shape s{c.rows, c.groups * c.d, c.pad, c.shift};
        SCOPED_TRACE(describe(s));
        const float eps = 1e-2f;
        const HostMatrix x = random_matrix(s, type, 1, 1, 4), dy = random_matrix(s, type, 2),
                         gain = HostMatrix(1, s.cols, weight_type).randomize(3, 0.2, 1),
                         bias = HostMatrix(1, s.cols, weight_type).randomize(4);
        HostMatrix want(s.rows, s.cols, type, s.pad), want_stats(s.rows, 2, F, 1);
        DeviceMatrix y(device(), want, s.shift), stats(device(), want_stats),
            d_x(device(), x, s.shift), d_gain(device(), gain), d_bias(device(), bias);
        layer_norm_forward(cpu, want, want_stats, x, gain,
                           with_bias ? ConstMatrix(bias) : ConstMatrix{}, eps);
        layer_norm_forward(device(), y, stats, d_x, d_gain,
                           with_bias ? ConstMatrix(d_bias) : ConstMatrix{}, eps);
        // The mean, of size 4, is rounded in another order; rstd is at most 10.
        expect_matches(stats.host(), want_stats, 2e-5, 2e-6);
        expect_matches(y.host(), want, 2e-5, neighbour(type));

        DeviceMatrix in_place(device(), x, s.shift);
        layer_norm_forward(device(), in_place, {}, in_place, d_gain,
                           with_bias ? ConstMatrix(d_bias) : ConstMatrix{}, eps);
        EXPECT_EQ(in_place.host(), y.host());

        // Differences of terms of the size of rstd times products of normal values.
        const double size = 100;
        HostMatrix want_dx = random_matrix(s, type, 5), aliased = dy;
        DeviceMatrix dx(device(), want_dx, s.shift), d_dy(device(), dy, s.shift);
        layer_norm_backward(cpu, want_dx, dy, x, want_stats, gain, true);
        layer_norm_backward(device(), dx, d_dy, d_x, stats, d_gain, true);
        expect_matches(dx.host(), want_dx, 2e-6 * size, neighbour(type));
        layer_norm_backward(cpu, aliased, aliased, x, want_stats, gain, false);
        layer_norm_backward(device(), d_dy, d_dy, d_x, stats, d_gain, false);
        expect_matches(d_dy.host(), aliased, 2e-6 * size, neighbour(type));
      }
}

// The sum equals the CPU's bit for bit, also in the place of x; the norms are those of the sum.
TEST_P(NormKernels, AddToTheResidualFirst) {
  for (const NormCase& c : kNormCases)
    for (auto [type, weight_type, with_bias] :
         {std::tuple{F, F, false}, {F, B, true}, {B, B, false}, {B, B, true}, {B, F, true}}) {
      const Shape s{c.rows, c.groups * c.d, c.pad, c.shift};
      SCOPED_TRACE(testing::Message() << describe(s) << ", bias " << with_bias);
      const HostMatrix x = random_matrix(s, type, 1), delta = random_matrix(s, type, 2),
                       gain = HostMatrix(1, s.cols, weight_type).randomize(3, 0.2, 1),
                       bias = HostMatrix(1, s.cols, weight_type).randomize(4);
      HostMatrix want_sum(s.rows, s.cols, type, s.pad), want(s.rows, s.cols, type, 1);
      DeviceMatrix sum(device(), want_sum, s.shift), y(device(), want), d_x(device(), x, s.shift),
          d_delta(device(), delta, s.shift), d_gain(device(), gain), d_bias(device(), bias);
      rms_norm_forward(cpu, want, {}, x, gain, 1e-5f, 0,
                       {want_sum, delta, with_bias ? ConstMatrix(bias) : ConstMatrix{}});
      rms_norm_forward(device(), y, {}, d_x, d_gain, 1e-5f, 0,
                       {sum, d_delta, with_bias ? ConstMatrix(d_bias) : ConstMatrix{}});
      EXPECT_EQ(sum.host(), want_sum);
      expect_matches(y.host(), want, 0, neighbour(type) + 3e-6);

      layer_norm_forward(cpu, want, {}, want_sum, gain, bias, 1e-2f);
      layer_norm_forward(device(), y, {}, d_x, d_gain, d_bias, 1e-2f,
                         {d_x, d_delta, with_bias ? ConstMatrix(d_bias) : ConstMatrix{}});
      EXPECT_EQ(d_x.host(), sum.host());
      expect_matches(y.host(), want, 1e-5, neighbour(type));
    }
}

}  // namespace
}  // namespace lorashard
