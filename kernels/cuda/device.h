// What the CUDA backend keeps for a Stream. For kernels/cuda/ and parallel/nccl.cpp.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <memory>

#include "kernels/stream.h"

namespace lorashard {

namespace cuda {
class PinnedRing;    // transfer.cpp
struct MatmulPlans;  // matmul.cpp
}  // namespace cuda

struct CudaStream {
  int device = 0;
  int multiprocessors = 0;
  int compute_capability = 0;  // 80, 90, 100: major * 10 + minor
  cudaStream_t compute = nullptr;

  // Host memory through which copies to the device go.
  std::shared_ptr<cuda::PinnedRing> ring;
  // cuBLASLt's handle, workspace and chosen algorithms; made with the stream.
  std::shared_ptr<cuda::MatmulPlans> matmul;
  // Set while collectives run beside the stream (parallel/nccl.cpp). `watch` is called again and
  // again while the host waits for the device, and throws if a collective failed; `watched` when
  // such a wait has ended, and does not throw; `abandon` ends collectives whose peers will never
  // come, so that what waits for them on the device ends too.
  std::function<void()> watch, watched;
  std::function<void()> abandon;
  // Whatever attention.cpp keeps per stream (cuDNN's handle and plans); made at its first use.
  std::shared_ptr<void> attention;
};

namespace cuda {

// The stream that kernels are enqueued on. REQUIRES: a CUDA stream.
inline cudaStream_t stream_of(const Stream& stream) { return stream.cuda()->compute; }

// Makes this thread's CUDA calls go to the stream's device.
void use_device(const Stream& stream);

// The host waits for all that was enqueued on the stream, or until `event` was passed.
void wait_for_stream(CudaStream& stream);
void wait_for_event(CudaStream& stream, cudaEvent_t event);
// For destructors: as wait_for_stream(), without an error; while an exception unwinds, collectives
// are abandoned first.
void settle(CudaStream& stream) noexcept;

}  // namespace cuda
}  // namespace lorashard
