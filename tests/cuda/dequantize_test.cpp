// Dequantisation on the device against its CPU reference.
#include "kernels/dequantize.h"

#include "tests/cuda/device.h"
#include "tests/kernels/nf4.h"

namespace lorashard {
namespace {

const DType F = DType::F32, B = DType::BF16, H = DType::F16;

class DequantizeKernels : public DeviceTest {};
INSTANTIATE_TEST_SUITE_P(Orders, DequantizeKernels, all_orders(), order_name);

TEST_P(DequantizeKernels, Nf4) {
  struct Case {
    int64_t rows, cols, pad;  // of y
    int64_t row, col;         // where the part begins that is read
  };
  // Aligned, odd widths, parts that begin inside a block, a pair of codes or four bytes.
  for (const Case& c : {Case{1, 1, 0, 0, 0},
                        {3, 64, 0, 0, 0},
                        {9, 96, 8, 0, 0},
                        {5, 37, 0, 0, 0},
                        {4, 64, 0, 2, 64},
                        {4, 64, 0, 2, 72},
                        {4, 61, 3, 2, 3},
                        {70, 512, 0, 1, 8}})
    for (bool nested : {false, true})
      for (DType type : {F, B, H}) {
        SCOPED_TRACE(testing::Message()
                     << c.rows << " x " << c.cols << " from " << c.row << ", " << c.col);
        const Nf4Tensor tensor(c.row + c.rows + 1, c.col + c.cols + 8 * (c.col % 8 == 0), 1);
        const Nf4Matrix part = tensor.matrix(nested).block(c.row, c.rows, c.col, c.cols);
        DeviceArray<uint8_t> codes(device(), tensor.codes),
            absmax_codes(device(), tensor.absmax_codes);
        DeviceArray<float> absmax(device(), tensor.absmax), levels(device(), tensor.absmax_levels),
            scales(device(), tensor.absmax_scales);
        Nf4Matrix d_part = part;
        d_part.codes = codes.data();
        if (nested) {
          d_part.absmax_codes = absmax_codes.data();
          d_part.absmax_levels = levels.data();
          d_part.absmax_scales = scales.data();
        } else {
          d_part.absmax = absmax.data();
        }
        HostMatrix want(c.rows, c.cols, type, c.pad);
        DeviceMatrix y(device(), want);
        dequantize_nf4(cpu, want, part);
        dequantize_nf4(device(), y, d_part);
        // Products rounded once; a quantised maximum may be formed by an fma on one side.
        if (nested)
          expect_matches(y.host(), want, 3e-7, neighbour(type));
        else
          EXPECT_EQ(y.host(), want);
      }
}

TEST_P(DequantizeKernels, Int8) {
  for (const Shape& s : shapes())
    for (DType type : {F, B, H}) {
      SCOPED_TRACE(describe(s));
      const int64_t ld = s.cols + s.pad;
      std::vector<int8_t> codes;
      for (int64_t i = 0; i < s.rows * ld + s.shift; ++i)
        codes.push_back(int8_t(i * 37 % 256 - 128));
      std::vector<float> scales;
      for (int64_t i = 0; i < s.rows; ++i) scales.push_back(0.01f * float(i + 1));
      DeviceArray<int8_t> d_codes(device(), codes);
      DeviceArray<float> d_scales(device(), scales);
      HostMatrix want(s.rows, s.cols, type, s.pad);
      DeviceMatrix y(device(), want, s.shift);
      const auto view = [&](const int8_t* p) {
        return ConstMatrix{p + s.shift, s.rows, s.cols, ld, DType::I8};
      };
      dequantize_int8(cpu, want, view(codes.data()), scales.data());
      dequantize_int8(device(), y, view(d_codes.data()), d_scales.data());
      EXPECT_EQ(y.host(), want);
    }
}

}  // namespace
}  // namespace lorashard
