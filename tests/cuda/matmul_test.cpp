// GEMM by cuBLASLt against sums in double.
#include "kernels/matmul.h"

#include <cublasLt.h>
#include <gmock/gmock.h>

#include <array>

#include "kernels/cuda/device.h"
#include "tests/cuda/device.h"

namespace lorashard {
namespace {

using Types = std::tuple<DType, DType, DType>;  // of x, w and y
struct Gemm {
  int64_t m, n, k;
};

// Values as the GEMM reads them: in its own type.
HostMatrix rounded(const HostMatrix& x, DType type) {
  HostMatrix r(x.rows, x.cols, type);
  for (int64_t i = 0; i < x.rows; ++i)
    for (int64_t j = 0; j < x.cols; ++j) r.set(i, j, x(i, j));
  return r;
}

void check_gemms(Stream& device, const Gemm& s, Types types, int64_t pad, int64_t shift) {
  const auto [at, bt, yt] = types;
  for (const auto& [alpha, beta] : {std::pair{1.0f, 0.0f}, {1.0f, 1.0f}, {0.5f, -2.0f}})
    for (const char form : {'t', 'n', 'w'}) {  // nt, nn, tn
      if (form == 'w' && yt != DType::F32) continue;
      HostMatrix a(form == 'w' ? s.k : s.m, form == 'w' ? s.m : s.k, at, pad);
      HostMatrix b(form == 't' ? s.n : s.k, form == 't' ? s.k : s.n, bt, pad);
      HostMatrix y(s.m, s.n, yt, pad);
      a.randomize(1), b.randomize(2);
      beta == 0 ? y.fill(NAN) : y.randomize(3);  // beta = 0 must not read y
      const DeviceMatrix da(device, a, shift), db(device, b, shift);
      DeviceMatrix dy(device, y, shift);
      if (form == 't') matmul_nt(device, dy, da, db, alpha, beta);
      if (form == 'n') matmul_nn(device, dy, da, db, alpha, beta);
      if (form == 'w') matmul_tn(device, dy, da, db, alpha, beta);
      const bool bf16 = form == 'w' ? at == DType::BF16 || bt == DType::BF16
                                    : at == DType::BF16 || yt == DType::BF16;
      const DType type = bf16 ? DType::BF16 : DType::F32;
      const HostMatrix ra = rounded(a, type), rb = rounded(b, type), got = dy.host();
      expect_near(
          got,
          [&](int64_t i, int64_t j) {
            double sum = 0;
            for (int64_t p = 0; p < s.k; ++p)
              sum += (form == 'w' ? ra(p, i) : ra(i, p)) * (form == 't' ? rb(j, p) : rb(p, j));
            return alpha * sum + (beta == 0 ? 0 : beta * y(i, j));
          },
          4e-7 * (double(s.k) + 4), rounding(yt) * 1.01);
      EXPECT_TRUE(got.gaps_untouched());
    }
}

const DType F = DType::F32, B = DType::BF16, H = DType::F16;

TEST(CudaMatmul, AgreesWithDefinition) {
  NEEDS_CUDA_DEVICES(1);
  Stream device(Backend::CUDA, 1);
  for (const Gemm& s : {Gemm{1, 1, 1},
                        {3, 5, 7},
                        {1, 130, 64},
                        {65, 8, 96},
                        {8, 70, 129},
                        {0, 4, 4},
                        {4, 0, 4},
                        {4, 6, 0}})
    for (const Types& types : {Types{F, F, F},
                               {F, B, F},
                               {F, H, F},
                               {B, B, B},
                               {B, B, F},
                               {B, F, B},
                               {B, F, F},
                               {F, F, B},
                               {B, H, B}}) {
      SCOPED_TRACE(testing::Message() << s.m << "x" << s.n << "x" << s.k);
      check_gemms(device, s, types, 0, 0);
      check_gemms(device, s, types, 3, 1);
    }
}

// One plan serves every bias; other types and unaligned rows go through scratch.
TEST(CudaMatmul, AddsABias) {
  Stream device(Backend::CUDA, 1);
  for (const Gemm& s : {Gemm{3, 5, 7}, {65, 8, 96}, {1, 130, 64}, {4, 6, 0}, {0, 4, 4}})
    for (const auto& [xt, wt, yt, bias_type] : {std::array{F, F, F, F},
                                                {F, B, F, B},
                                                {B, B, B, B},
                                                {B, B, B, F},
                                                {B, B, F, H},
                                                {F, F, B, H},
                                                {B, B, F, F}})
      for (const int64_t shift : {0, 1, 8})
        for (const uint64_t seed : {3, 4}) {
          SCOPED_TRACE(testing::Message() << s.m << "x" << s.n << "x" << s.k << " " << shift);
          HostMatrix x(s.m, s.k, xt), w(s.n, s.k, wt), bias(1, s.n, bias_type), y(s.m, s.n, yt, 3);
          x.randomize(1), w.randomize(2), bias.randomize(seed, 3), y.fill(NAN);
          const bool transposed = seed == 4;  // w stored as (K,N)
          HostMatrix stored(transposed ? s.k : s.n, transposed ? s.n : s.k, wt);
          for (int64_t j = 0; j < s.n; ++j)
            for (int64_t p = 0; p < s.k; ++p)
              stored.set(transposed ? p : j, transposed ? j : p, w(j, p));
          const DeviceMatrix dx(device, x), dw(device, stored), d_bias(device, bias, shift);
          DeviceMatrix dy(device, y);
          (transposed ? matmul_nn_bias : matmul_nt_bias)(device, dy, dx, dw, d_bias);
          const DType type = xt == B || yt == B ? B : F;
          // Without a GEMM there is no epilogue, and nothing to round for it.
          const HostMatrix rx = rounded(x, type), rw = rounded(w, type),
                           added = s.k == 0 ? bias : rounded(bias, yt), got = dy.host();
          expect_near(
              got,
              [&](int64_t i, int64_t j) {
                double sum = added(0, j);
                for (int64_t p = 0; p < s.k; ++p) sum += rx(i, p) * rw(j, p);
                return sum;
              },
              4e-7 * (double(s.k) + 4), rounding(yt) * 1.01);
          EXPECT_TRUE(got.gaps_untouched());
        }
}

#if LORASHARD_CUDA_SIM
// The double refuses what cuBLASLt refuses.
TEST(CudaMatmul, TheDoubleChecksItsArguments) {
  cublasLtHandle_t handle;
  ASSERT_EQ(cublasLtCreate(&handle), CUBLAS_STATUS_SUCCESS);
  cublasLtMatmulDescOpaque_t gemm;
  ASSERT_EQ(cublasLtMatmulDescInit(&gemm, CUBLAS_COMPUTE_32F, CUDA_R_32F), CUBLAS_STATUS_SUCCESS);
  cublasLtMatmulPreferenceOpaque_t preference;
  ASSERT_EQ(cublasLtMatmulPreferenceInit(&preference), CUBLAS_STATUS_SUCCESS);
  const auto layout = [](cudaDataType_t type, uint64_t rows, uint64_t cols, int64_t ld) {
    cublasLtMatrixLayoutOpaque_t made;
    EXPECT_EQ(cublasLtMatrixLayoutInit(&made, type, rows, cols, ld), CUBLAS_STATUS_SUCCESS);
    return made;
  };
  const auto choose = [&](cublasLtMatrixLayoutOpaque_t a, cublasLtMatrixLayoutOpaque_t b,
                          cublasLtMatrixLayoutOpaque_t d) {
    cublasLtMatmulHeuristicResult_t best;
    int found = 0;
    return cublasLtMatmulAlgoGetHeuristic(handle, &gemm, &a, &b, &d, &d, &preference, 1, &best,
                                          &found);
  };
  const auto f32 = CUDA_R_32F, bf16 = CUDA_R_16BF;
  EXPECT_EQ(choose(layout(f32, 4, 3, 4), layout(f32, 3, 5, 3), layout(f32, 4, 5, 4)),
            CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(choose(layout(f32, 4, 3, 3), layout(f32, 3, 5, 3), layout(f32, 4, 5, 4)),
            CUBLAS_STATUS_INVALID_VALUE);  // ld
  EXPECT_EQ(choose(layout(f32, 4, 3, 4), layout(f32, 5, 3, 5), layout(f32, 4, 5, 4)),
            CUBLAS_STATUS_INVALID_VALUE);  // depth
  EXPECT_EQ(choose(layout(f32, 4, 3, 4), layout(bf16, 3, 5, 3), layout(f32, 4, 5, 4)),
            CUBLAS_STATUS_NOT_SUPPORTED);  // types
  EXPECT_EQ(choose(layout(f32, 4, 3, 4), layout(f32, 3, 5, 3), layout(bf16, 4, 5, 4)),
            CUBLAS_STATUS_NOT_SUPPORTED);
  const auto set = [&](cublasLtMatmulDescAttributes_t what, auto value) {
    EXPECT_EQ(cublasLtMatmulDescSetAttribute(&gemm, what, &value, sizeof value),
              CUBLAS_STATUS_SUCCESS);
  };
  const auto choose_f32 = [&] {
    return choose(layout(f32, 4, 3, 4), layout(f32, 3, 5, 3), layout(f32, 4, 5, 4));
  };
  alignas(16) static float bias[8] = {};
  set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
  EXPECT_EQ(choose_f32(), CUBLAS_STATUS_INVALID_VALUE);  // no pointer
  set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, static_cast<const void*>(bias + 1));
  EXPECT_EQ(choose_f32(), CUBLAS_STATUS_INVALID_VALUE);  // its alignment
  set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, static_cast<const void*>(bias));
  EXPECT_EQ(choose_f32(), CUBLAS_STATUS_SUCCESS);
  set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, int32_t(bf16));
  EXPECT_EQ(choose_f32(), CUBLAS_STATUS_NOT_SUPPORTED);  // not D's type
  set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_GELU);
  EXPECT_EQ(choose_f32(), CUBLAS_STATUS_NOT_SUPPORTED);  // not used here
  EXPECT_EQ(cublasLtDestroy(handle), CUBLAS_STATUS_SUCCESS);
}
#endif

}  // namespace
}  // namespace lorashard
