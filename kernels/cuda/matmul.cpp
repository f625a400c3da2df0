// GEMM by cuBLASLt.
//
// cuBLASLt is column-major: it reads a row-major matrix as its transpose. So it is asked for y^T,
// with the second operand first.
#include <cublasLt.h>

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <tuple>

#include "kernels/cuda/check.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/matmul_plans.h"
#include "kernels/matmul.h"
#include "kernels/matmul_paths.h"

namespace lorashard::cuda {
namespace {

void check(cublasStatus_t status, const char* call, const std::string& what = {}) {
  if (status != CUBLAS_STATUS_SUCCESS)
    fail_call(call, std::string(cublasLtGetStatusString(status)) + " (" +
                        cublasLtGetStatusName(status) + ")" + (what.empty() ? "" : " for " + what));
}
#define CHECK_BLAS(call) check((call), #call)

// What NVIDIA recommends for Hopper and later; earlier devices need 4 MiB.
constexpr size_t kWorkspaceBytes = size_t{32} << 20;
// Plans kept; a run has a few dozen GEMMs, each at a few token counts.
constexpr size_t kMostPlans = 4096;

// One operand of the GEMM as the caller gave it: row-major, and whether it is meant transposed.
struct Operand {
  ConstMatrix m;
  bool transposed;
  int64_t rows() const { return transposed ? m.cols : m.rows; }
  int64_t cols() const { return transposed ? m.rows : m.cols; }
};

cudaDataType_t cuda_type(DType t) {
  switch (t) {
    case DType::F32:
      return CUDA_R_32F;
    case DType::BF16:
      return CUDA_R_16BF;
    default:
      throw std::logic_error("matmul: unsupported type");
  }
}

// The power of two, at most 256, that divides the address: cuBLASLt picks kernels by it.
uint32_t alignment(const void* p) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  return address == 0 ? 256 : uint32_t(std::min(256, 1 << std::min(8, std::countr_zero(address))));
}

// All that an algorithm's choice depends on.
using PlanKey = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, bool, bool, DType,
                           DType, uint32_t, uint32_t, uint32_t, bool>;

struct Plan {
  cublasLtMatmulDescOpaque_t gemm;
  cublasLtMatrixLayoutOpaque_t first, second, result;
  cublasLtMatmulAlgo_t algorithm;
};

cublasLtMatrixLayoutOpaque_t layout(ConstMatrix m) {
  cublasLtMatrixLayoutOpaque_t made;
  CHECK_BLAS(cublasLtMatrixLayoutInit(&made, cuda_type(m.dtype), uint64_t(m.cols), uint64_t(m.rows),
                                      std::max(m.ld, m.cols)));
  return made;
}

// Adds the row to every row of y. Its type is y's, which cuBLASLt takes for granted.
void set_bias(cublasLtMatmulDescOpaque_t& gemm, const void* bias) {
  const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
  CHECK_BLAS(cublasLtMatmulDescSetAttribute(&gemm, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue,
                                            sizeof epilogue));
  CHECK_BLAS(
      cublasLtMatmulDescSetAttribute(&gemm, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias));
}

}  // namespace

struct MatmulPlans {
  MatmulPlans() {
    CHECK_BLAS(cublasLtCreate(&handle));
    LORASHARD_CUDA_CHECK(cudaMalloc(&workspace, kWorkspaceBytes));
  }
  ~MatmulPlans() {
    cudaFree(workspace);
    cublasLtDestroy(handle);
  }
  MatmulPlans(const MatmulPlans&) = delete;
  MatmulPlans& operator=(const MatmulPlans&) = delete;

  // bias: null, or the (1,N) row of y's type that is added to every row. A plan serves for any.
  const Plan& plan(Matrix y, const Operand& a, const Operand& b, const void* bias);

  cublasLtHandle_t handle = nullptr;
  void* workspace = nullptr;
  std::map<PlanKey, Plan> plans;
};

std::shared_ptr<MatmulPlans> make_matmul_plans() { return std::make_shared<MatmulPlans>(); }

const Plan& MatmulPlans::plan(Matrix y, const Operand& a, const Operand& b, const void* bias) {
  const PlanKey key{y.rows,
                    y.cols,
                    a.cols(),
                    a.m.ld,
                    b.m.ld,
                    y.ld,
                    a.transposed,
                    b.transposed,
                    a.m.dtype,
                    y.dtype,
                    alignment(a.m.data),
                    alignment(b.m.data),
                    alignment(y.data),
                    bias != nullptr};
  if (const auto found = plans.find(key); found != plans.end()) return found->second;

  Plan made;
  CHECK_BLAS(cublasLtMatmulDescInit(&made.gemm, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  const cublasOperation_t first_op = b.transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
  const cublasOperation_t second_op = a.transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
  CHECK_BLAS(cublasLtMatmulDescSetAttribute(&made.gemm, CUBLASLT_MATMUL_DESC_TRANSA, &first_op,
                                            sizeof first_op));
  CHECK_BLAS(cublasLtMatmulDescSetAttribute(&made.gemm, CUBLASLT_MATMUL_DESC_TRANSB, &second_op,
                                            sizeof second_op));
  // y^T has a row for each element of the bias. The choice of an algorithm wants to see a pointer.
  if (bias) set_bias(made.gemm, bias);
  made.first = layout(b.m);
  made.second = layout(a.m);
  made.result = layout(y);

  cublasLtMatmulPreferenceOpaque_t preference;
  CHECK_BLAS(cublasLtMatmulPreferenceInit(&preference));
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t what, auto value) {
    CHECK_BLAS(cublasLtMatmulPreferenceSetAttribute(&preference, what, &value, sizeof value));
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspaceBytes);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment(b.m.data));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment(a.m.data));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment(y.data));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment(y.data));
  cublasLtMatmulHeuristicResult_t best{};
  int found = 0;
  const cublasStatus_t status =
      cublasLtMatmulAlgoGetHeuristic(handle, &made.gemm, &made.first, &made.second, &made.result,
                                     &made.result, &preference, 1, &best, &found);
  const auto shape = [&] {
    return "a GEMM of (" + std::to_string(y.rows) + "," + std::to_string(a.cols()) + ") and (" +
           std::to_string(a.cols()) + "," + std::to_string(y.cols) + ") in " +
           std::string(name_of(a.m.dtype));
  };
  if (status != CUBLAS_STATUS_SUCCESS) check(status, "cublasLtMatmulAlgoGetHeuristic", shape());
  if (found == 0) fail_call("cublasLtMatmulAlgoGetHeuristic", "no algorithm for " + shape());
  made.algorithm = best.algo;
  if (plans.size() >= kMostPlans) plans.clear();
  return plans.emplace(key, made).first->second;
}

namespace {

// The bias as cuBLASLt takes it: of y's type, and where vectors of 16 bytes can be read.
const void* bias_for(Stream& stream, DType type, ConstMatrix bias) {
  if (!bias || (bias.dtype == type && alignment(bias.data) >= 16)) return bias.data;
  return converted(stream, bias, type, ScratchSlot::GemmBias).data;
}

void gemm(Stream& stream, Matrix y, Operand a, Operand b, float alpha, float beta, DType type,
          ConstMatrix bias = {}) {
  assert(a.rows() == y.rows && b.cols() == y.cols && a.cols() == b.rows());
  if (y.rows == 0 || y.cols == 0) return;
  if (a.cols() == 0 || alpha == 0) {
    if (stream.reserving()) return;
    beta == 0 ? fill_zero(stream, y) : scale(stream, y, beta);
    if (bias) add_bias(stream, y, bias);
    return;
  }
  if (a.m.dtype != type) a.m = converted(stream, a.m, type, ScratchSlot::GemmA);
  if (b.m.dtype != type) b.m = converted(stream, b.m, type, ScratchSlot::GemmB);
  const void* added = bias_for(stream, y.dtype, bias);
  if (stream.reserving()) return;
  MatmulPlans& plans = *stream.cuda()->matmul;
  const Plan& plan = plans.plan(y, a, b, added);
  cublasLtMatmulDescOpaque_t description = plan.gemm;
  if (added) set_bias(description, added);
  CHECK_BLAS(cublasLtMatmul(plans.handle, &description, &alpha, b.m.data,
                            const_cast<cublasLtMatrixLayoutOpaque_t*>(&plan.first), a.m.data,
                            const_cast<cublasLtMatrixLayoutOpaque_t*>(&plan.second), &beta, y.data,
                            const_cast<cublasLtMatrixLayoutOpaque_t*>(&plan.result), y.data,
                            const_cast<cublasLtMatrixLayoutOpaque_t*>(&plan.result),
                            &plan.algorithm, plans.workspace, kWorkspaceBytes, stream_of(stream)));
}

}  // namespace

void matmul_nt(Stream& stream, Matrix y, ConstMatrix x, ConstMatrix w, float alpha, float beta) {
  gemm(stream, y, {x, false}, {w, true}, alpha, beta, cuda_gemm_type(y, x));
}

void matmul_nt_bias(Stream& stream, Matrix y, ConstMatrix x, ConstMatrix w, ConstMatrix bias) {
  gemm(stream, y, {x, false}, {w, true}, 1, 0, cuda_gemm_type(y, x), bias);
}

void matmul_nn(Stream& stream, Matrix y, ConstMatrix x, ConstMatrix w, float alpha, float beta) {
  gemm(stream, y, {x, false}, {w, false}, alpha, beta, cuda_gemm_type(y, x));
}

void matmul_nn_bias(Stream& stream, Matrix y, ConstMatrix x, ConstMatrix w, ConstMatrix bias) {
  gemm(stream, y, {x, false}, {w, false}, 1, 0, cuda_gemm_type(y, x), bias);
}

void matmul_tn(Stream& stream, Matrix y, ConstMatrix a, ConstMatrix b, float alpha, float beta) {
  gemm(stream, y, {a, true}, {b, false}, alpha, beta, cuda_gemm_type(a, b));
}

}  // namespace lorashard::cuda
