// Column sums, scaling of columns and DoRA's weight norms on the device, against their CPU
// references.
#include "kernels/columns.h"

#include "kernels/dora.h"
#include "tests/cuda/device.h"

namespace lorashard {
namespace {

const DType F = DType::F32, B = DType::BF16, H = DType::F16;

class ColumnKernels : public DeviceTest {};
INSTANTIATE_TEST_SUITE_P(Orders, ColumnKernels, all_orders(), order_name);

TEST_P(ColumnKernels, SumsAndScaling) {
  for (const Shape& s : shapes())
    for (auto [tx, ty] : {std::pair{F, F}, {B, B}, {B, F}}) {
      SCOPED_TRACE(describe(s));
      const HostMatrix x = random_matrix(s, tx, 1);
      HostMatrix y = random_matrix(s, ty, 2), sums = HostMatrix(1, s.cols, F).randomize(3);
      const HostMatrix factors = HostMatrix(1, s.cols, F).randomize(4);
      DeviceMatrix dx(device(), x, s.shift), dy(device(), y, s.shift), d_sums(device(), sums),
          d_factors(device(), factors);
      for (const bool products : {false, true}) {
        add_column_sums(cpu, sums, x, products ? ConstMatrix(y) : ConstMatrix{});
        add_column_sums(device(), d_sums, dx, products ? ConstMatrix(dy) : ConstMatrix{});
        // Sums in double in another order, rounded once.
        expect_matches(d_sums.host(), sums, 1e-10, 2e-7);
      }
      for (const bool accumulate : {false, true}) {
        scale_columns(cpu, y, x, factors, accumulate);
        scale_columns(device(), dy, dx, d_factors, accumulate);
        expect_matches(dy.host(), y, 3e-7, neighbour(ty));
      }
    }
}

TEST_P(ColumnKernels, DoraNorms) {
  for (const auto& [n, k, r] : {std::array<int64_t, 3>{1, 1, 1}, {37, 130, 3}, {70, 577, 16}})
    for (const DType type : {F, B, H}) {
      const HostMatrix w = HostMatrix(n, k, type, 3).randomize(1),
                       p = HostMatrix(r, n, F, 1).randomize(2),
                       b = HostMatrix(n, r, F).randomize(3),
                       gram = HostMatrix(r, r, F).randomize(4),
                       m = HostMatrix(1, n, F).randomize(5);
      HostMatrix base(1, n, F), squares(1, n, F), scale(1, n, F), excess(1, n, F), inverse(1, n, F);
      DeviceMatrix dw(device(), w), dp(device(), p), db(device(), b), dg(device(), gram),
          dm(device(), m), d_base(device(), base), d_squares(device(), squares),
          d_scale(device(), scale), d_excess(device(), excess), d_inverse(device(), inverse);
      row_squares(cpu, base, w);
      row_squares(device(), d_base, dw);
      expect_matches(d_base.host(), base, 0, 2e-7);
      dora_squares(cpu, squares, base, p, b, gram, 0.5f);
      dora_squares(device(), d_squares, d_base, dp, db, dg, 0.5f);
      expect_matches(d_squares.host(), squares, 2e-5, 2e-6);
      for (int64_t j = 0; j < n; ++j) squares.set(0, j, base(0, j));  // positive
      dora_scales(cpu, scale, excess, inverse, squares, m);
      dora_scales(device(), d_scale, d_excess, d_inverse, d_base, dm);
      expect_matches(d_inverse.host(), inverse, 0, 5e-7);
      expect_matches(d_scale.host(), scale, 0, 6e-7);
      expect_matches(d_excess.host(), excess, 1e-6, 1e-6);
    }
}

}  // namespace
}  // namespace lorashard
