// The part of cuBLASLt that lorashard calls, over oneDNN's sgemm: real GEMMs of F32 or BF16
// operands, column-major, accumulated in fp32, and a bias added to each column. It refuses what the
// library refuses: types it does not join, leading dimensions too small, sizes that do not fit each
// other, an algorithm used for another GEMM or for less aligned memory than it was chosen for.
#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cudasim/arena.h>
#include <cudasim/queue.h>
#include <cudasim/violation.h>
#include <dnnl.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

namespace {

using namespace cudasim;

constexpr uint32_t kGemm = 0x70726f64, kLayout = 0x6c61796f, kPreference = 0x70726566,
                   kAlgorithm = 0x616c676f;

struct Gemm {
  uint32_t mark;
  cublasComputeType_t compute;
  cudaDataType_t scale;
  int32_t trans_a, trans_b;
  cublasLtEpilogue_t epilogue;
  int32_t bias_type;  // -1: that of D
  const void* bias;   // one element for each row of D
};
struct Layout {
  uint32_t mark;
  cudaDataType_t type;
  uint64_t rows, cols;
  int64_t ld;
};
struct Preference {
  uint32_t mark;
  uint32_t align_a, align_b, align_c, align_d;
  uint64_t workspace;
};
struct Algorithm {
  uint32_t mark;
  uint16_t align_a, align_b, align_c, align_d;
  uint32_t m, n, k;
  uint16_t type_in, type_out;
  uint32_t epilogue;
  uint64_t workspace;
};

// Our structs lie inside the library's opaque ones.
template <class T, class Opaque>
T& inside(Opaque* opaque) {
  static_assert(sizeof(T) <= sizeof(Opaque));
  return *std::launder(reinterpret_cast<T*>(opaque));
}
template <class T, class Opaque>
cublasStatus_t place(Opaque* opaque, size_t size, const T& value) {
  static_assert(sizeof(T) <= sizeof(Opaque));
  if (size < sizeof(Opaque)) return CUBLAS_STATUS_INVALID_VALUE;
  std::memset(static_cast<void*>(opaque), 0, sizeof(Opaque));
  new (opaque) T(value);
  return CUBLAS_STATUS_SUCCESS;
}
template <class Opaque>
bool is(const Opaque* opaque, uint32_t mark) {
  uint32_t found = 0;
  if (opaque) std::memcpy(&found, opaque, sizeof found);
  return found == mark;
}

template <class T>
cublasStatus_t set(T& field, const void* value, size_t size) {
  if (!value || size != sizeof(T)) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(&field, value, sizeof(T));
  return CUBLAS_STATUS_SUCCESS;
}

size_t bytes_of(cudaDataType_t type) { return type == CUDA_R_16BF ? 2 : 4; }

// Bytes from the first to behind the last element of a column-major matrix.
size_t extent(const Layout& l) { return (size_t(l.ld) * (l.cols - 1) + l.rows) * bytes_of(l.type); }

// D = alpha op(A) op(B) + beta C with all that a check needs.
struct Call {
  Gemm gemm;
  Layout a, b, c, d;
  uint64_t m() const { return d.rows; }
  uint64_t n() const { return d.cols; }
  uint64_t k() const { return gemm.trans_a == CUBLAS_OP_N ? a.cols : a.rows; }
};

cublasStatus_t check(const Call& call) {
  const auto [gemm, a, b, c, d] = call;
  if (gemm.compute != CUBLAS_COMPUTE_32F || gemm.scale != CUDA_R_32F)
    return CUBLAS_STATUS_NOT_SUPPORTED;
  const bool f32 = a.type == CUDA_R_32F && d.type == CUDA_R_32F;
  const bool bf16 = a.type == CUDA_R_16BF && (d.type == CUDA_R_16BF || d.type == CUDA_R_32F);
  if (a.type != b.type || c.type != d.type || !(f32 || bf16)) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (gemm.epilogue == CUBLASLT_EPILOGUE_BIAS) {
    // For these GEMMs the library joins a bias of D's type only, and reads it in vectors.
    if (gemm.bias_type != -1 && gemm.bias_type != int32_t(d.type))
      return CUBLAS_STATUS_NOT_SUPPORTED;
    if (!gemm.bias || reinterpret_cast<uintptr_t>(gemm.bias) % 16)
      return CUBLAS_STATUS_INVALID_VALUE;
  } else if (gemm.epilogue != CUBLASLT_EPILOGUE_DEFAULT) {
    return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  for (const Layout& l : {a, b, c, d})
    if (l.rows == 0 || l.cols == 0 || l.ld < int64_t(l.rows)) return CUBLAS_STATUS_INVALID_VALUE;
  const bool a_plain = gemm.trans_a == CUBLAS_OP_N, b_plain = gemm.trans_b == CUBLAS_OP_N;
  const bool fit = (a_plain ? a.rows : a.cols) == d.rows && (b_plain ? b.cols : b.rows) == d.cols &&
                   (a_plain ? a.cols : a.rows) == (b_plain ? b.rows : b.cols) && c.rows == d.rows &&
                   c.cols == d.cols;
  return fit ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}

std::vector<float> load(const void* p, const Layout& l) {
  std::vector<float> values(l.rows * l.cols);
  for (uint64_t j = 0; j < l.cols; ++j)
    for (uint64_t i = 0; i < l.rows; ++i) {
      const size_t at = j * size_t(l.ld) + i;
      values[j * l.rows + i] = l.type == CUDA_R_16BF
                                   ? __bfloat162float(static_cast<const __nv_bfloat16*>(p)[at])
                                   : static_cast<const float*>(p)[at];
    }
  return values;
}

void store(void* p, const Layout& l, const std::vector<float>& values) {
  for (uint64_t j = 0; j < l.cols; ++j)
    for (uint64_t i = 0; i < l.rows; ++i) {
      const size_t at = j * size_t(l.ld) + i;
      if (l.type == CUDA_R_16BF)
        static_cast<__nv_bfloat16*>(p)[at] = __float2bfloat16(values[j * l.rows + i]);
      else
        static_cast<float*>(p)[at] = values[j * l.rows + i];
    }
}

void multiply(const Call& call, float alpha, const void* a, const void* b, float beta,
              const void* c, void* d) {
  if (!arena_holds(a, extent(call.a)) || !arena_holds(b, extent(call.b)) ||
      !arena_holds(d, extent(call.d)) || (beta != 0 && !arena_holds(c, extent(call.c))))
    throw Violation("cublasLtMatmul: a matrix does not lie in one device allocation");
  const std::vector<float> left = load(a, call.a), right = load(b, call.b);
  std::vector<float> result(call.m() * call.n());
  if (beta != 0) result = load(c, call.c);
  // oneDNN is row-major: it too is asked for the transpose, which swaps the operands.
  if (dnnl_sgemm(call.gemm.trans_b == CUBLAS_OP_N ? 'N' : 'T',
                 call.gemm.trans_a == CUBLAS_OP_N ? 'N' : 'T', dnnl_dim_t(call.n()),
                 dnnl_dim_t(call.m()), dnnl_dim_t(call.k()), alpha, right.data(),
                 dnnl_dim_t(call.b.rows), left.data(), dnnl_dim_t(call.a.rows), beta, result.data(),
                 dnnl_dim_t(call.m())) != dnnl_success)
    throw Violation("cublasLtMatmul: oneDNN's sgemm refused");
  if (call.gemm.epilogue == CUBLASLT_EPILOGUE_BIAS) {
    const Layout row{kLayout, call.d.type, call.m(), 1, int64_t(call.m())};
    if (!arena_holds(call.gemm.bias, extent(row)))
      throw Violation("cublasLtMatmul: the bias does not lie in one device allocation");
    const std::vector<float> bias = load(call.gemm.bias, row);
    for (uint64_t j = 0; j < call.n(); ++j)
      for (uint64_t i = 0; i < call.m(); ++i) result[j * call.m() + i] += bias[i];
  }
  store(d, call.d, result);
}

bool aligned(const void* p, uint32_t to) { return reinterpret_cast<uintptr_t>(p) % to == 0; }

std::atomic<int> live_handles = 0;

}  // namespace

extern "C" {

const char* cublasLtGetStatusName(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "CUBLAS_STATUS_NOT_SUPPORTED";
    case CUBLAS_STATUS_EXECUTION_FAILED:
      return "CUBLAS_STATUS_EXECUTION_FAILED";
    default:
      return "CUBLAS_STATUS_UNKNOWN";
  }
}

const char* cublasLtGetStatusString(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "no error";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "an unsupported value or parameter was passed to the function";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "the functionality requested is not supported";
    case CUBLAS_STATUS_EXECUTION_FAILED:
      return "the function failed to launch on the device";
    default:
      return "unknown status";
  }
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  ++live_handles;
  *handle = reinterpret_cast<cublasLtHandle_t>(&live_handles);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t) {
  --live_handles;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutInit_internal(cublasLtMatrixLayout_t layout, size_t size,
                                                 cudaDataType_t type, uint64_t rows, uint64_t cols,
                                                 int64_t ld) {
  return place(layout, size, Layout{kLayout, type, rows, cols, ld});
}

cublasStatus_t cublasLtMatmulDescInit_internal(cublasLtMatmulDesc_t desc, size_t size,
                                               cublasComputeType_t compute, cudaDataType_t scale) {
  return place(desc, size,
               Gemm{kGemm, compute, scale, CUBLAS_OP_N, CUBLAS_OP_N, CUBLASLT_EPILOGUE_DEFAULT, -1,
                    nullptr});
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc,
                                              cublasLtMatmulDescAttributes_t which,
                                              const void* value, size_t size) {
  if (!is(desc, kGemm)) return CUBLAS_STATUS_INVALID_VALUE;
  Gemm& gemm = inside<Gemm>(desc);
  switch (which) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return set(gemm.trans_a, value, size);
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return set(gemm.trans_b, value, size);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return set(gemm.epilogue, value, size);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
      return set(gemm.bias, value, size);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
      return set(gemm.bias_type, value, size);
    default:
      return CUBLAS_STATUS_NOT_SUPPORTED;
  }
}

// 256 bytes is what the library takes for granted where nothing is said.
cublasStatus_t cublasLtMatmulPreferenceInit_internal(cublasLtMatmulPreference_t preference,
                                                     size_t size) {
  return place(preference, size, Preference{kPreference, 256, 256, 256, 256, 0});
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t which,
                                                    const void* value, size_t size) {
  if (!is(preference, kPreference)) return CUBLAS_STATUS_INVALID_VALUE;
  Preference& p = inside<Preference>(preference);
  switch (which) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
      return set(p.workspace, value, size);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
      return set(p.align_a, value, size);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
      return set(p.align_b, value, size);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
      return set(p.align_c, value, size);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
      return set(p.align_d, value, size);
    default:
      return CUBLAS_STATUS_NOT_SUPPORTED;
  }
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t gemm,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t results[],
                                              int* found) {
  if (!handle || !is(gemm, kGemm) || !is(a, kLayout) || !is(b, kLayout) || !is(c, kLayout) ||
      !is(d, kLayout) || !is(preference, kPreference) || wanted < 1)
    return CUBLAS_STATUS_INVALID_VALUE;
  const Call call{inside<Gemm>(gemm), inside<Layout>(a), inside<Layout>(b), inside<Layout>(c),
                  inside<Layout>(d)};
  *found = 0;
  if (const cublasStatus_t status = check(call); status != CUBLAS_STATUS_SUCCESS) return status;
  const Preference& p = inside<Preference>(preference);
  cublasLtMatmulHeuristicResult_t& result = results[0];
  result = {};
  result.state = CUBLAS_STATUS_SUCCESS;
  result.workspaceSize = p.workspace;
  *found = 1;
  return place(&result.algo, sizeof result.algo,
               Algorithm{kAlgorithm, uint16_t(p.align_a), uint16_t(p.align_b), uint16_t(p.align_c),
                         uint16_t(p.align_d), uint32_t(call.m()), uint32_t(call.n()),
                         uint32_t(call.k()), uint16_t(call.a.type), uint16_t(call.d.type),
                         uint32_t(call.gemm.epilogue), p.workspace});
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t gemm, const void* alpha,
                              const void* a, cublasLtMatrixLayout_t a_layout, const void* b,
                              cublasLtMatrixLayout_t b_layout, const void* beta, const void* c,
                              cublasLtMatrixLayout_t c_layout, void* d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algo,
                              void* workspace, size_t workspace_bytes, cudaStream_t stream) {
  if (!handle || !is(gemm, kGemm) || !is(a_layout, kLayout) || !is(b_layout, kLayout) ||
      !is(c_layout, kLayout) || !is(d_layout, kLayout) || !is(algo, kAlgorithm) || !a || !b || !d)
    return CUBLAS_STATUS_INVALID_VALUE;
  const Call call{inside<Gemm>(gemm), inside<Layout>(a_layout), inside<Layout>(b_layout),
                  inside<Layout>(c_layout), inside<Layout>(d_layout)};
  if (const cublasStatus_t status = check(call); status != CUBLAS_STATUS_SUCCESS) return status;
  const Algorithm& chosen = inside<const Algorithm>(algo);
  if (chosen.m != call.m() || chosen.n != call.n() || chosen.k != call.k() ||
      chosen.type_in != call.a.type || chosen.type_out != call.d.type ||
      chosen.epilogue != uint32_t(call.gemm.epilogue) || chosen.workspace > workspace_bytes ||
      (chosen.workspace > 0 && !aligned(workspace, 256)) ||
      !arena_holds(workspace, chosen.workspace) || !aligned(a, chosen.align_a) ||
      !aligned(b, chosen.align_b) || !aligned(c, chosen.align_c) || !aligned(d, chosen.align_d))
    return CUBLAS_STATUS_INVALID_VALUE;
  const float by = *static_cast<const float*>(alpha), kept = *static_cast<const float*>(beta);
  const cudaError_t status = enqueue_call(stream, [=] { multiply(call, by, a, b, kept, c, d); });
  return status == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}

}  // extern "C"
