// cuDNN's attention for a stream: which shapes it serves, its plans, kept with the stream, and
// how one runs. Plans: kernels/cuda/cudnn_graph.h.
#pragma once

#include "kernels/cuda/cudnn_graph.h"
#include "kernels/stream.h"

namespace lorashard::cuda {

// Lengths that cuDNN is used for are multiples of this: each length needs a plan, which takes about
// a second to make, and batches of ragged data have a new length at every step.
inline constexpr int64_t kCudnnLengths = 128;

// The plan for a shape on the stream's device, made at the first call; plan.problem says why cuDNN
// does not serve it. Plans that need more workspace than four times q in fp32 are not used: some
// deterministic backward passes keep length x length scores.
const CudnnPlan& cudnn_plan(Stream& stream, const CudnnShape& shape);

// Bytes of scratch that a call takes: the workspace and lse in cuDNN's order.
size_t cudnn_scratch_bytes(const CudnnPlan& plan, const CudnnShape& shape);

// Enqueues attention. lse(Tq, heads), its rows ld_lse apart, is written by the forward pass (where
// it is kept) and read by the backward pass.
void cudnn_run(Stream& stream, const CudnnPlan& plan, const CudnnShape& shape,
               const std::array<void*, kCudnnTensors>& tensors, float* lse, int64_t ld_lse,
               void* scratch);

// "cuDNN 9.19.0"
std::string cudnn_name();

}  // namespace lorashard::cuda
