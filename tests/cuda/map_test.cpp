// Element-wise device kernels against their CPU references.
#include "kernels/activation.h"
#include "kernels/dropout.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/rope.h"
#include "kernels/rows.h"
#include "tests/cuda/device.h"

namespace lorashard {
namespace {

const DType F = DType::F32, B = DType::BF16, H = DType::F16;

class MapKernels : public DeviceTest {};
INSTANTIATE_TEST_SUITE_P(Orders, MapKernels, all_orders(), order_name);

// Types of y, a and b: alike, and mixed.
const std::vector<std::array<DType, 3>> kMixtures = {{F, F, F}, {B, B, B}, {F, B, F}, {B, F, B}};

TEST_P(MapKernels, Add) {
  for (const Shape& s : shapes())
    for (auto [ty, ta, tb] : kMixtures) {
      SCOPED_TRACE(describe(s));
      const HostMatrix a = random_matrix(s, ta, 1), b = random_matrix(s, tb, 2);
      HostMatrix want = random_matrix(s, ty, 3);
      DeviceMatrix y(device(), want, s.shift), da(device(), a, s.shift), db(device(), b, s.shift);
      add(cpu, want, a, b);
      add(device(), y, da, db);
      expect_matches(y.host(), want);  // one addition, rounded once: the same bits
      if (ty != ta) continue;
      add(device(), da, da, db);  // aliased
      expect_matches(da.host(), want);
    }
}

TEST_P(MapKernels, AddBiasAndScale) {
  for (const Shape& s : shapes())
    for (DType type : {F, B})
      for (DType bias_type : {F, B, H}) {
        SCOPED_TRACE(describe(s));
        HostMatrix want = random_matrix(s, type, 1);
        const HostMatrix bias = HostMatrix(1, s.cols, bias_type).randomize(2);
        DeviceMatrix y(device(), want, s.shift), d_bias(device(), bias);
        add_bias(cpu, want, bias);
        scale(cpu, want, -0.3f);
        add_bias(device(), y, d_bias);
        scale(device(), y, -0.3f);
        expect_matches(y.host(), want);
      }
}

TEST_P(MapKernels, ConvertAndZero) {
  for (const Shape& s : shapes())
    for (DType to : {F, B, H})
      for (DType from : {F, B, H}) {
        SCOPED_TRACE(describe(s));
        HostMatrix x = random_matrix(s, from, 1, 300);
        x.set(0, 0, INFINITY);
        x.set(s.rows - 1, s.cols - 1, -3e-6);  // a subnormal of F16
        HostMatrix want(s.rows, s.cols, to, s.pad);
        DeviceMatrix y(device(), want, s.shift), dx(device(), x, s.shift);
        convert(cpu, want, x);
        convert(device(), y, dx);
        EXPECT_EQ(y.host(), want);
        fill_zero(device(), y);
        expect_matches(y.host(), want.fill(0));
      }
}

TEST_P(MapKernels, ConversionKeepsNan) {
  for (DType to : {F, B, H})
    for (DType from : {F, B, H}) {
      HostMatrix x(1, 16, from);
      x.fill(NAN);
      DeviceMatrix y(device(), HostMatrix(1, 16, to)), dx(device(), x);
      convert(device(), y, dx);
      const HostMatrix got = y.host();
      for (int64_t j = 0; j < 16; ++j) EXPECT_TRUE(std::isnan(got(0, j)));
    }
}

TEST_P(MapKernels, Activation) {
  for (const Shape& s : shapes())
    for (DType type : {F, B})
      for (Activation f : {Activation::SILU, Activation::GELU, Activation::GELU_TANH})
        for (bool gated : {true, false}) {
          SCOPED_TRACE(describe(s));
          const HostMatrix gate = random_matrix(s, type, 1, 3), up = random_matrix(s, type, 2),
                           dy = random_matrix(s, type, 3);
          HostMatrix want(s.rows, s.cols, type, s.pad), want_gate = gate, want_up = up;
          gated_activation_forward(cpu, want, gate, gated ? up.view() : ConstMatrix{}, f);
          gated_activation_backward(cpu, want_gate, gated ? want_up.view() : Matrix{}, dy, gate,
                                    gated ? up.view() : ConstMatrix{}, f);
          DeviceMatrix y(device(), HostMatrix(s.rows, s.cols, type, s.pad), s.shift),
              d_gate(device(), gate, s.shift), d_up(device(), up, s.shift),
              d_dy(device(), dy, s.shift);
          const ConstMatrix in_up = gated ? ConstMatrix(d_up) : ConstMatrix{};
          // The CPU's erf is good to 3e-7 absolute, of which x up to 10 makes 3e-6; products with
          // dy and up, up to 4 each, follow.
          const double absolute = 5e-5, relative = neighbour(type) + 1e-6;
          gated_activation_forward(device(), y, d_gate, in_up, f);
          expect_matches(y.host(), want, absolute, relative);
          gated_activation_backward(device(), d_gate, gated ? d_up.view() : Matrix{}, d_dy, d_gate,
                                    in_up, f);
          expect_matches(d_gate.host(), want_gate, absolute, relative);
          expect_matches(d_up.host(), want_up, absolute, relative);
        }
}

// Far arguments: no overflow, no NaN; NaN stays, so that a bad loss is noticed.
TEST_P(MapKernels, ActivationFarArguments) {
  for (DType type : {F, B})
    for (Activation f : {Activation::SILU, Activation::GELU, Activation::GELU_TANH}) {
      HostMatrix x(1, 8, type), one(1, 8, type);
      one.fill(1);
      const double values[] = {-1e4, 1e4, 0, -90, 90, -1e9, NAN, 1e9};
      for (int64_t j = 0; j < 8; ++j) x.set(0, j, values[j]);
      DeviceMatrix y(device(), one), dx(device(), one), d_one(device(), one), dx_in(device(), x);
      gated_activation_forward(device(), y, dx_in, {}, f);
      gated_activation_backward(device(), dx, {}, d_one, dx_in, {}, f);
      const HostMatrix value = y.host(), slope = dx.host();
      for (int64_t j = 0; j < 8; ++j) {
        if (j == 6) {
          EXPECT_TRUE(std::isnan(value(0, j)) && std::isnan(slope(0, j)));
          continue;
        }
        EXPECT_NEAR(value(0, j), x(0, j) > 0 ? x(0, j) : 0, 1e-30);
        EXPECT_NEAR(slope(0, j), x(0, j) > 0 ? 1 : x(0, j) == 0 ? 0.5 : 0, 1e-20);
      }
    }
}

TEST_P(MapKernels, Rope) {
  struct Case {
    int64_t rows, heads, d, r, pad, shift;
  };
  const std::vector<Case> cases = {
      {1, 1, 2, 1, 0, 0},    {5, 3, 64, 32, 0, 0}, {9, 5, 16, 8, 8, 0},
      {3, 9, 128, 64, 0, 0}, {4, 2, 20, 6, 0, 0},  {3, 4, 64, 32, 3, 0},
      {3, 4, 64, 32, 0, 1},  {6, 7, 96, 16, 0, 0}, {2, 0, 64, 32, 0, 0}};
  for (const Case& c : cases)
    for (DType type : {F, B})
      for (bool inverse : {false, true}) {
        SCOPED_TRACE(testing::Message() << c.heads << " heads of " << c.d);
        HostMatrix want = HostMatrix(c.rows, c.heads * c.d, type, c.pad).randomize(1);
        HostMatrix table = HostMatrix(11, 2 * c.r, F).randomize(2);
        std::vector<int32_t> positions;
        for (int64_t t = 0; t < c.rows; ++t) positions.push_back(int32_t((t * 7 + 3) % 11));
        DeviceMatrix x(device(), want, c.shift), d_table(device(), table);
        DeviceArray<int32_t> d_positions(device(), positions);
        rope(cpu, want, c.heads, positions.data(), table, inverse);
        rope(device(), x, c.heads, d_positions.data(), d_table, inverse);
        // Two products and a sum; the CPU may keep one product unrounded.
        expect_matches(x.host(), want, 2e-6, neighbour(type));
      }
}

TEST_P(MapKernels, Embedding) {
  for (const Shape& s : shapes())
    for (DType type : {F, B})
      for (DType table_type : {F, B, H}) {
        SCOPED_TRACE(describe(s));
        const HostMatrix table = HostMatrix(50, s.cols, table_type, s.pad).randomize(1);
        std::vector<int32_t> ids;
        for (int64_t t = 0; t < s.rows; ++t) ids.push_back(int32_t((t * 37 + 110) % 200));
        HostMatrix want(s.rows, s.cols, type, s.pad);
        want.fill(NAN);
        DeviceMatrix y(device(), want, s.shift), d_table(device(), table, s.shift);
        DeviceArray<int32_t> d_ids(device(), ids);
        embedding_forward(cpu, want, ids.data(), table, 100, 1.5f);
        embedding_forward(device(), y, d_ids.data(), d_table, 100, 1.5f);
        expect_matches(y.host(), want);
      }
}

TEST_P(MapKernels, EmbeddingBackward) {
  for (const Shape& s : shapes())
    for (DType type : {F, B}) {
      SCOPED_TRACE(describe(s));
      const HostMatrix dy = random_matrix(s, type, 1);
      std::vector<int32_t> ids;
      for (int64_t t = 0; t < s.rows; ++t) ids.push_back(int32_t(t * 37 % 60 + 80));
      HostMatrix want = HostMatrix(50, s.cols, F, s.pad).randomize(2);
      DeviceMatrix table(device(), want, s.shift), d_dy(device(), dy, s.shift);
      DeviceArray<int32_t> d_ids(device(), ids);
      embedding_backward(cpu, want, ids.data(), dy, 100, -0.3f);
      embedding_backward(device(), table, d_ids.data(), d_dy, 100, -0.3f);
      expect_matches(table.host(), want, 1e-6, 1e-6);  // the CPU may round the products
    }
}

TEST_P(MapKernels, GatherAndScatterRows) {
  for (const Shape& s : shapes())
    for (DType type : {F, B}) {
      SCOPED_TRACE(describe(s));
      std::vector<int32_t> rows;  // every other row, backwards
      for (int64_t t = s.rows - 1; t >= 0; t -= 2) rows.push_back(int32_t(t));
      const auto count = int64_t(rows.size());
      const HostMatrix x = random_matrix(s, type, 1);
      HostMatrix picked(count, s.cols, type, s.pad), back(s.rows, s.cols, type, s.pad);
      back.fill(7);
      DeviceMatrix dx(device(), x, s.shift), d_picked(device(), picked, s.shift),
          d_back(device(), back, s.shift);
      DeviceArray<int32_t> d_rows(device(), rows);
      gather_rows(cpu, picked, x, rows.data());
      gather_rows(device(), d_picked, dx, d_rows.data());
      EXPECT_EQ(d_picked.host(), picked);
      scatter_rows(cpu, back, picked, rows.data());
      scatter_rows(device(), d_back, d_picked, d_rows.data());
      EXPECT_EQ(d_back.host(), back);
    }
}

TEST_P(MapKernels, PutAndTakeColumns) {
  for (const Shape& s : shapes()) {
    if (s.cols < 2) continue;  // columns are distinct
    SCOPED_TRACE(describe(s));
    const std::vector<int32_t> cols = {int32_t(103 + s.cols), 103, 99, int32_t(102 + s.cols)};
    HostMatrix y = random_matrix(s, F, 1), x(s.rows, 4, F, 1);
    x.randomize(2);
    DeviceMatrix dy(device(), y, s.shift), dx(device(), x, s.shift);
    DeviceArray<int32_t> d_cols(device(), cols);
    put_columns(cpu, y, x, cols.data(), 103);
    put_columns(device(), dy, dx, d_cols.data(), 103);
    EXPECT_EQ(dy.host(), y);
    take_columns(cpu, x, y, cols.data(), 103);
    take_columns(device(), dx, dy, d_cols.data(), 103);
    EXPECT_EQ(dx.host(), x);
    EXPECT_EQ(dy.host(), y);
  }
}

TEST_P(MapKernels, RowsOfEverySize) {
  for (DType type : {DType::U8, DType::I16, DType::I32, DType::I64}) {
    const int64_t size = size_of(type), cols = 37;
    std::vector<char> bytes(size_t(4 * cols * size));
    for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = char(i * 7);
    DeviceArray<char> x(device(), bytes), y(device(), std::vector<char>(bytes.size() / 2));
    DeviceArray<int32_t> rows(device(), {3, 1});
    gather_rows(device(), matrix(y.data(), 2, cols, type), const_matrix(x.data(), 4, cols, type),
                rows.data());
    const std::vector<char> got = y.host();
    const auto row = [&](size_t r) { return bytes.data() + r * size_t(cols * size); };
    EXPECT_EQ(std::memcmp(got.data(), row(3), size_t(cols * size)), 0);
    EXPECT_EQ(std::memcmp(got.data() + cols * size, row(1), size_t(cols * size)), 0);
  }
}

TEST_P(MapKernels, Dropout) {
  for (const Shape& s : shapes())
    for (auto [ty, tx] : {std::pair{F, F}, {B, B}, {F, B}, {B, F}})
      for (int64_t first_col : {0, 1, 2, 3, 1026}) {
        SCOPED_TRACE(testing::Message() << describe(s) << ", first column " << first_col);
        std::vector<uint64_t> keys;
        for (int64_t t = 0; t < s.rows; ++t) keys.push_back(0x123456789abcull * uint64_t(t + 1));
        const HostMatrix x = random_matrix(s, tx, 1);
        HostMatrix want = random_matrix(s, ty, 2);
        DeviceMatrix y(device(), want, s.shift), dx(device(), x, s.shift);
        DeviceArray<uint64_t> d_keys(device(), keys);
        dropout(cpu, want, x, 77, 5, keys.data(), first_col, 0.3f, false);
        dropout(device(), y, dx, 77, 5, d_keys.data(), first_col, 0.3f, false);
        expect_matches(y.host(), want);  // the mask bit for bit, and one product
        dropout(cpu, want, x, 78, 6, keys.data(), first_col, 0.5f, true);
        dropout(device(), y, dx, 78, 6, d_keys.data(), first_col, 0.5f, true);
        // The CPU may keep the product unrounded.
        expect_matches(y.host(), want, 5e-7, neighbour(ty));
      }
}

// Counters beyond 2^32 reach the high words: rows and sites differ there.
TEST_P(MapKernels, DropoutHighCounters) {
  HostMatrix x(2, 32, F), want(2, 32, F);
  x.fill(1);
  const std::vector<uint64_t> keys = {0xffffffff12345678ull, 1ull << 40};
  DeviceMatrix y(device(), want), dx(device(), x);
  DeviceArray<uint64_t> d_keys(device(), keys);
  const uint64_t seed = 0xdeadbeefcafef00dull;
  dropout(cpu, want, x, seed, 0xfffffff0u, keys.data(), int64_t{1} << 33, 0.5f, false);
  dropout(device(), y, dx, seed, 0xfffffff0u, d_keys.data(), int64_t{1} << 33, 0.5f, false);
  expect_matches(y.host(), want);
}

// No rows or columns: nothing runs, nothing is touched.
TEST_P(MapKernels, Empty) {
  HostMatrix none(0, 8, F);
  DeviceMatrix y(device(), none);
  DeviceArray<int32_t> ids(device(), {0});
  add(device(), y, y, y);
  scale(device(), y, 2);
  convert(device(), y, y);
  fill_zero(device(), y);
  gather_rows(device(), y, y, ids.data());
  embedding_forward(device(), y, ids.data(), y, 0, 1);
  device().synchronize();
}

}  // namespace
}  // namespace lorashard
