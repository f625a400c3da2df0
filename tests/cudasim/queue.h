// Streams and events: lazy queues. Nothing runs before something waits for it; then the stream
// runs, and of other streams only what the events it waits for require. So work that is not ordered
// by an event runs in the wrong order here, always.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <string>

namespace cudasim {

// Work of a stream: returns false if it cannot be done yet (a collective whose peers are not there)
// and is called again.
using Work = std::function<bool()>;

// Errors: cudaErrorLaunchFailure after a violation on the device, cudaErrorInvalidResourceHandle
// for the default stream or another device's.
cudaError_t enqueue(cudaStream_t stream, Work work);
// For work that is always done at once.
template <class F>
cudaError_t enqueue_call(cudaStream_t stream, F&& call) {
  return enqueue(stream, [call = std::forward<F>(call)] {
    call();
    return true;
  });
}

int device_of(cudaStream_t stream);
int& current_device();
// Runs everything on the streams of the current device, in random order.
cudaError_t run_device();

}  // namespace cudasim
