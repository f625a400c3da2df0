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

// Makes the work for the stream that it is enqueued on. Captured work is made anew for each launch
// of the graph.
using MakeWork = std::function<Work(cudaStream_t)>;

// On a captured stream the work is recorded in the capture instead.
// Errors: cudaErrorLaunchFailure after a violation on the device, cudaErrorInvalidResourceHandle
// for the default stream or another device's.
cudaError_t enqueue(cudaStream_t stream, Work work);
cudaError_t enqueue_made(cudaStream_t stream, MakeWork make);
// For work that is always done at once.
template <class F>
cudaError_t enqueue_call(cudaStream_t stream, F&& call) {
  return enqueue(stream, [call = std::forward<F>(call)] {
    call();
    return true;
  });
}

// cudaStreamQuery, for the simulator itself.
cudaError_t poll(cudaStream_t stream);
// For what a captured stream cannot do: ends its capture; cudaSuccess if it is not captured.
cudaError_t refuse_captured(cudaStream_t stream);
// For calls that could wait for the device or change its memory: ends the capture that forbids them
// here (cudaStreamCaptureMode), and returns `error`; cudaSuccess if none does.
cudaError_t refuse_in_capture(cudaError_t error);

int device_of(cudaStream_t stream);
int& current_device();
// Runs everything on the streams of the current device, in random order.
cudaError_t run_device();

}  // namespace cudasim
