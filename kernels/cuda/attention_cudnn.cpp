#include "kernels/cuda/attention_cudnn.h"

#include <map>

#include "configs/error.h"
#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/device.h"

#if LORASHARD_CUDNN
#include <cudnn.h>
#endif

namespace lorashard::cuda {
namespace {

// What a stream keeps (CudaStream::attention).
struct CudnnAttention {
  cudnnContext* handle = nullptr;
  std::string problem;  // why there is no handle
  std::map<CudnnShape, CudnnPlan> plans;

  explicit CudnnAttention([[maybe_unused]] cudaStream_t stream) {
#if LORASHARD_CUDNN
    cudnnStatus_t status = cudnnCreate(&handle);
    if (status == CUDNN_STATUS_SUCCESS) status = cudnnSetStream(handle, stream);
    if (status != CUDNN_STATUS_SUCCESS)
      problem = std::string("cuDNN does not start: ") + cudnnGetErrorString(status);
#else
    problem = "this program was built without cuDNN";
#endif
  }
  ~CudnnAttention() {
    plans.clear();
#if LORASHARD_CUDNN
    if (handle) cudnnDestroy(handle);
#endif
  }
};

CudnnAttention& of(Stream& stream) {
  std::shared_ptr<void>& kept = stream.cuda()->attention;
  if (!kept) kept = std::make_shared<CudnnAttention>(stream_of(stream));
  return *static_cast<CudnnAttention*>(kept.get());
}

size_t lse_bytes(const CudnnShape& shape) {
  if (!shape.backward && !shape.keep_lse) return 0;
  const size_t bytes = size_t(shape.batch * shape.heads * shape.length) * sizeof(float);
  return (bytes + 255) / 256 * 256;
}

}  // namespace

const CudnnPlan& cudnn_plan(Stream& stream, const CudnnShape& shape) {
  CudnnAttention& kept = of(stream);
  const auto found = kept.plans.find(shape);
  if (found != kept.plans.end()) return found->second;
  CudnnPlan plan;
  plan.problem = kept.problem;
  if (plan.problem.empty()) plan = make_cudnn_plan(shape, kept.handle);
  const int64_t q_bytes =
      shape.batch * shape.length * shape.heads * shape.head_dim * int64_t{sizeof(float)};
  if (plan.graph && plan.workspace_bytes > 4 * q_bytes) {
    plan.problem =
        "cuDNN needs " + std::to_string(plan.workspace_bytes >> 20) + " MiB of workspace for it";
    plan.graph.reset();
  }
  return kept.plans.emplace(shape, std::move(plan)).first->second;
}

size_t cudnn_scratch_bytes(const CudnnPlan& plan, const CudnnShape& shape) {
  return lse_bytes(shape) + size_t(plan.workspace_bytes);
}

void cudnn_run(Stream& stream, const CudnnPlan& plan, const CudnnShape& shape,
               const std::array<void*, kCudnnTensors>& tensors, float* lse, int64_t ld_lse,
               void* scratch) {
  float* const by_head = lse_bytes(shape) ? static_cast<float*>(scratch) : nullptr;
  void* const workspace = static_cast<char*>(scratch) + lse_bytes(shape);
  const LseOrder order{shape.batch, shape.heads, shape.length};
  if (shape.backward)
    lse_to_heads(stream_of(stream), by_head, Rows<const float>{lse, ld_lse}, order);
  execute(plan, of(stream).handle, tensors, by_head, workspace);
  if (!shape.backward && by_head)
    lse_from_heads(stream_of(stream), Rows<float>{lse, ld_lse}, by_head, order);
}

std::string cudnn_name() {
#if LORASHARD_CUDNN
  const size_t v = cudnnGetVersion();
  return "cuDNN " + std::to_string(v / 10000) + "." + std::to_string(v / 100 % 100) + "." +
         std::to_string(v % 100);
#else
  return "cuDNN";
#endif
}

}  // namespace lorashard::cuda
