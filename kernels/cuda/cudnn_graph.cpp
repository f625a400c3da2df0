#include "kernels/cuda/cudnn_graph.h"

#include "configs/error.h"

#if LORASHARD_CUDNN
// The frontend's headers carry their own JSON library for serialised graphs, which we have no use
// for.
#define CUDNN_FRONTEND_SKIP_JSON_LIB
#include <cudnn_frontend.h>
#endif

namespace lorashard::cuda {

CudnnShape contiguous(CudnnShape shape) {
  shape.ld.fill(0);
  for (int t : {kQ, kO}) shape.ld[size_t(t)] = shape.heads * shape.head_dim;
  for (int t : {kK, kV}) shape.ld[size_t(t)] = shape.kv_heads * shape.head_dim;
  if (!shape.backward) return shape;
  for (int t : {kDO, kDQ}) shape.ld[size_t(t)] = shape.heads * shape.head_dim;
  for (int t : {kDK, kDV}) shape.ld[size_t(t)] = shape.kv_heads * shape.head_dim;
  return shape;
}

#if LORASHARD_CUDNN

namespace {

namespace fe = cudnn_frontend;
using fe::graph::Graph;
using TensorPtr = std::shared_ptr<fe::graph::Tensor_attributes>;

constexpr int64_t kLseId = 100;  // of the other tensors: their CudnnTensor

class Builder {
 public:
  // `prepare` is called with the empty graph: operations take over the graph's settings when they
  // are added.
  template <class Prepare>
  Builder(const CudnnShape& shape, Prepare prepare)
      : shape_(shape), graph_(std::make_shared<Graph>()) {
    prepare(*graph_);
    graph_->set_io_data_type(fe::DataType_t::BFLOAT16)
        .set_intermediate_data_type(fe::DataType_t::FLOAT)
        .set_compute_data_type(fe::DataType_t::FLOAT);
    if (shape.backward)
      add_backward();
    else
      add_forward();
  }
  std::shared_ptr<Graph> graph() const { return graph_; }

 private:
  std::vector<int64_t> dims(CudnnTensor t) const {
    const bool of_keys = t == kK || t == kV || t == kDK || t == kDV;
    return {shape_.batch, of_keys ? shape_.kv_heads : shape_.heads, shape_.length, shape_.head_dim};
  }
  std::vector<int64_t> strides(CudnnTensor t) const {
    const int64_t ld = shape_.ld[t];
    return {shape_.length * ld, shape_.head_dim, ld, 1};
  }
  TensorPtr input(CudnnTensor t, const char* name) const {
    return graph_->tensor(
        fe::graph::Tensor_attributes().set_name(name).set_uid(t).set_dim(dims(t)).set_stride(
            strides(t)));
  }
  void output(const TensorPtr& tensor, CudnnTensor t) const {
    tensor->set_output(true).set_uid(t).set_dim(dims(t)).set_stride(strides(t));
  }
  // The mask is a band below the diagonal.
  template <class Attributes>
  Attributes masked(Attributes attributes) const {
    attributes.set_attn_scale(shape_.scale)
        .set_diagonal_alignment(fe::DiagonalAlignment_t::TOP_LEFT)
        .set_diagonal_band_right_bound(0);
    // cuDNN keeps the keys with key + bound > query.
    if (shape_.window > 0 && shape_.window < shape_.length)
      attributes.set_diagonal_band_left_bound(int(shape_.window));
    return attributes;
  }
  std::vector<int64_t> lse_dims() const { return {shape_.batch, shape_.heads, shape_.length, 1}; }
  std::vector<int64_t> lse_strides() const {
    return {shape_.heads * shape_.length, shape_.length, 1, 1};
  }

  void add_forward() const {
    const auto attributes = masked(fe::graph::SDPA_attributes()
                                       .set_name("attention_forward")
                                       .set_generate_stats(shape_.keep_lse));
    auto [o, lse] = graph_->sdpa(input(kQ, "q"), input(kK, "k"), input(kV, "v"), attributes);
    output(o, kO);
    if (shape_.keep_lse)
      lse->set_output(true)
          .set_uid(kLseId)
          .set_data_type(fe::DataType_t::FLOAT)
          .set_dim(lse_dims())
          .set_stride(lse_strides());
  }

  void add_backward() const {
    const TensorPtr lse = graph_->tensor(fe::graph::Tensor_attributes()
                                             .set_name("lse")
                                             .set_uid(kLseId)
                                             .set_data_type(fe::DataType_t::FLOAT)
                                             .set_dim(lse_dims())
                                             .set_stride(lse_strides()));
    // Resumed runs are bit for bit those that were not interrupted, so every kernel must be
    // deterministic.
    const auto attributes = masked(fe::graph::SDPA_backward_attributes()
                                       .set_name("attention_backward")
                                       .set_deterministic_algorithm(true));
    auto [dq, dk, dv] = graph_->sdpa_backward(input(kQ, "q"), input(kK, "k"), input(kV, "v"),
                                              input(kO, "o"), input(kDO, "d_o"), lse, attributes);
    output(dq, kDQ), output(dk, kDK), output(dv, kDV);
  }

  CudnnShape shape_;
  std::shared_ptr<Graph> graph_;
};

CudnnPlan finish(const std::shared_ptr<Graph>& graph, cudnnHandle_t handle) {
  CudnnPlan plan;
  const auto step = [&](const char* name, fe::error_t status) {
    if (status.is_bad()) plan.problem = std::string(name) + ": " + status.get_message();
    return status.is_good();
  };
  const bool done = step("graph", graph->validate()) &&
                    step("operations", handle ? graph->build_operation_graph(handle)
                                              : graph->build_operation_graph()) &&
                    step("plans", graph->create_execution_plans({fe::HeurMode_t::A})) &&
                    step("support", graph->check_support()) &&
                    step("plan", graph->build_plans(fe::BuildPlanPolicy_t::HEURISTICS_CHOICE)) &&
                    step("workspace", graph->get_workspace_size(plan.workspace_bytes));
  if (!done) return plan;
  (void)graph->get_plan_name(plan.name);
  plan.graph = graph;
  return plan;
}

}  // namespace

bool has_cudnn() { return true; }

CudnnPlan make_cudnn_plan(const CudnnShape& shape, cudnnContext* handle) {
  return finish(Builder(shape, [](Graph&) {}).graph(), handle);
}

CudnnPlan make_cudnn_plan(const CudnnShape& shape, const std::string& device,
                          int compute_capability) {
  const auto properties = std::make_shared<fe::DeviceProperties>();
  fe::error_t status = properties->deserialize(std::vector<uint8_t>(device.begin(), device.end()));
  if (status.is_bad()) return {"device properties: " + status.get_message(), "", 0, nullptr};
  const Builder builder(shape, [&](Graph& graph) {
    graph.set_device_properties(properties).set_sm_version(compute_capability);
  });
  return finish(builder.graph(), nullptr);
}

void execute(const CudnnPlan& plan, cudnnContext* handle,
             const std::array<void*, kCudnnTensors>& tensors, void* lse, void* workspace) {
  std::unordered_map<int64_t, void*> pack;
  for (int64_t t = 0; t < kCudnnTensors; ++t)
    if (tensors[size_t(t)]) pack[t] = tensors[size_t(t)];
  if (lse) pack[kLseId] = lse;
  fe::error_t status = static_cast<Graph*>(plan.graph.get())->execute(handle, pack, workspace);
  if (status.is_bad())
    fail_run("cuDNN attention", "plan " + plan.name + " failed: " + status.get_message());
}

#else

bool has_cudnn() { return false; }
CudnnPlan make_cudnn_plan(const CudnnShape&, cudnnContext*) {
  return {"built without cuDNN's frontend", "", 0, nullptr};
}
CudnnPlan make_cudnn_plan(const CudnnShape&, const std::string&, int) {
  return {"built without cuDNN's frontend", "", 0, nullptr};
}
void execute(const CudnnPlan&, cudnnContext*, const std::array<void*, kCudnnTensors>&, void*,
             void*) {
  fail_run("cuDNN attention", "built without cuDNN's frontend");
}

#endif

}  // namespace lorashard::cuda
