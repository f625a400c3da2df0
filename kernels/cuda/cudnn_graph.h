// Scaled-dot-product attention of cuDNN as a graph with a finished plan: built once for a shape,
// executed many times. The only place that knows cuDNN's frontend; without the frontend's headers
// (LORASHARD_CUDNN=0) there are no plans and the project's own kernels serve.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <memory>
#include <string>

struct cudnnContext;  // cudnnHandle_t points to it

namespace lorashard::cuda {

// The matrices of attention, in the order in which CudnnShape and execute() take them. Q, O, D_O
// and DQ are (batch * length, heads * head_dim), the others (batch * length, kv_heads * head_dim).
enum CudnnTensor { kQ, kK, kV, kO, kDO, kDQ, kDK, kDV, kCudnnTensors };

// `batch` sequences of `length` queries and as many keys, one after the other, in BF16; causal.
// Query head i uses key/value head i / (heads / kv_heads).
struct CudnnShape {
  int64_t batch = 0, length = 0, heads = 0, kv_heads = 0, head_dim = 0;
  int64_t window = 0;  // 0: none
  float scale = 1;
  bool backward = false;
  bool keep_lse = true;                     // forward only
  std::array<int64_t, kCudnnTensors> ld{};  // of the matrices that it has
  auto operator<=>(const CudnnShape&) const = default;
};

// The shape with all rows contiguous.
CudnnShape contiguous(CudnnShape shape);

struct CudnnPlan {
  std::string problem;  // why there is no plan; empty if there is one
  std::string name;     // cuDNN's own, for example "sdpa_sm90_flash_fprop_…"
  int64_t workspace_bytes = 0;
  std::shared_ptr<void> graph;
};

// True if the program was built with cuDNN's frontend.
bool has_cudnn();

// For the handle's device.
CudnnPlan make_cudnn_plan(const CudnnShape& shape, cudnnContext* handle);
// For a device that is described and need not exist (cuDNN's JSON of device properties).
CudnnPlan make_cudnn_plan(const CudnnShape& shape, const std::string& device,
                          int compute_capability);

// Enqueues the graph on the handle's stream. tensors: by CudnnTensor; lse: batch * heads * length
// floats, length innermost, may be null if the plan keeps none. Error (status 3) naming the plan.
void execute(const CudnnPlan& plan, cudnnContext* handle,
             const std::array<void*, kCudnnTensors>& tensors, void* lse, void* workspace);

}  // namespace lorashard::cuda
