#include <cudasim/arena.h>
#include <cudasim/counts.h>
#include <cudasim/queue_state.h>
#include <cudasim/settings.h>
#include <cudasim/violation.h>

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>
#include <vector>

namespace cudasim {

Streams& streams() {
  static Streams* s = new Streams;
  return *s;
}

namespace {

using Lock = std::unique_lock<std::mutex>;

// Runs `stream` until its queue is empty or `until` has passed record `record`. Waits for work that
// cannot be done yet if `may_wait`, else returns false. Throws Violation.
bool run(Lock& lock, CUstream_st* stream, bool may_wait, const EventState* until = nullptr,
         uint64_t record = 0) {
  const auto me = std::this_thread::get_id();
  if (stream->runner == me) throw Violation("streams that wait for each other in a circle");
  while (stream->runner != std::thread::id{}) {
    if (!may_wait) return false;
    streams().idle.wait(lock);
  }
  stream->runner = me;
  struct Idle {
    CUstream_st* stream;
    ~Idle() {
      stream->runner = {};
      streams().idle.notify_all();
    }
  } idle{stream};
  while (!stream->items.empty() && !(until && until->passed >= record)) {
    Item& item = stream->items.front();  // stays in place while others enqueue
    if (item.work) {
      lock.unlock();
      bool done = false;
      try {
        done = item.work();
      } catch (...) {
        lock.lock();
        throw;
      }
      if (!done && may_wait) std::this_thread::sleep_for(std::chrono::microseconds(50));
      lock.lock();
      if (!done) {
        if (!may_wait) return false;
        continue;
      }
    } else if (item.event->passed < item.record) {
      if (!run(lock, item.event->stream, may_wait, item.event.get(), item.record)) return false;
    }
    stream->items.pop_front();
  }
  return true;
}

// run() with device memory within reach, and its violations noted.
cudaError_t drain(int device, const std::function<bool(Lock&)>& body) {
  if (has_violation(device)) return cudaErrorLaunchFailure;
  const ArenaAccess access;
  Lock lock(streams().mutex);
  std::string violation;
  bool done = false;
  try {
    done = body(lock);
    violation = arena_damage();
  } catch (const Violation& v) {
    violation = v.what();
    if (!lock.owns_lock()) lock.lock();
  }
  if (violation.empty()) return done ? cudaSuccess : cudaErrorNotReady;
  for (CUstream_st* s : streams().all)
    if (s->device == device) s->items.clear();
  set_violation(device, violation);
  return cudaErrorLaunchFailure;
}

bool has_passed(const EventState& event) {
  const Lock lock(streams().mutex);
  return event.passed >= event.recorded;
}

bool is_empty(const CUstream_st& stream) {
  const Lock lock(streams().mutex);
  return stream.items.empty();
}

// A captured event can neither be waited for nor asked.
cudaError_t refuse_captured(const EventState& event) {
  const Lock lock(streams().mutex);
  return event.place.capture ? refuse(event.place, cudaErrorCapturedEvent) : cudaSuccess;
}

}  // namespace

int& current_device() {
  thread_local int device = 0;
  return device;
}

int device_of(cudaStream_t stream) { return stream->device; }

cudaError_t enqueue(cudaStream_t stream, Work work) {
  return enqueue_made(stream, [work = std::move(work)](cudaStream_t) { return work; });
}

cudaError_t enqueue_made(cudaStream_t stream, MakeWork make) {
  if (!stream) {
    const cudaError_t status = refuse_in_capture(cudaErrorStreamCaptureImplicit);
    return status == cudaSuccess ? cudaErrorInvalidResourceHandle : status;
  }
  if (stream->device != current_device()) return cudaErrorInvalidResourceHandle;
  if (has_violation(stream->device)) return cudaErrorLaunchFailure;
  Lock lock(streams().mutex);
  if (stream->place.capture) return capture_work(stream, std::move(make));
  lock.unlock();
  Work work = make(stream);
  lock.lock();
  stream->items.push_back({std::move(work), nullptr, 0});
  return cudaSuccess;
}

cudaError_t refuse_captured(cudaStream_t stream) {
  const Lock lock(streams().mutex);
  return stream->place.capture ? refuse(stream->place, cudaErrorStreamCaptureUnsupported)
                               : cudaSuccess;
}

cudaError_t poll(cudaStream_t stream) {
  return drain(stream->device, [=](Lock& lock) { return run(lock, stream, false); });
}

cudaError_t run_device() {
  const int device = current_device();
  return drain(device, [device](Lock& lock) {
    std::vector<CUstream_st*> left;
    for (CUstream_st* s : streams().all)
      if (s->device == device) left.push_back(s);
    while (!left.empty()) {
      const size_t i = next_random() % left.size();
      run(lock, left[i], true);
      left.erase(left.begin() + std::ptrdiff_t(i));
    }
    return true;
  });
}

}  // namespace cudasim

using namespace cudasim;

extern "C" {

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  if (flags != cudaStreamNonBlocking)
    return cudaErrorNotSupported;  // it would order with the default stream
  *stream = new CUstream_st;
  (*stream)->device = current_device();
  const Lock lock(streams().mutex);
  streams().all.push_back(*stream);
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int) {
  return cudaStreamCreateWithFlags(stream, flags);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (!stream) return cudaErrorInvalidResourceHandle;
  if (const auto e = refuse_captured(stream)) return e;
  if (!is_empty(*stream)) ++counts().waits;
  return drain(stream->device, [=](Lock& lock) { return run(lock, stream, true); });
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
  if (!stream) return cudaErrorInvalidResourceHandle;
  if (const auto e = refuse_captured(stream)) return e;
  if (!is_empty(*stream)) ++counts().waits;
  return poll(stream);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const cudaError_t status = cudaStreamSynchronize(stream);
  const Lock lock(streams().mutex);
  std::erase(streams().all, stream);
  delete stream;
  return status;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (!stream) return cudaErrorInvalidResourceHandle;
  const Lock lock(streams().mutex);
  cudaError_t status = cudaSuccess;
  if (capture_wait(stream, *event->state, status)) return status;
  if (event->state->recorded > event->state->passed)
    stream->items.push_back({nullptr, event->state, event->state->recorded});
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st;
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const auto state = event->state;
  uint64_t record = 0;
  {
    const Lock lock(streams().mutex);
    if (stream && stream->place.capture) return capture_record(*state, stream);
    state->place = {};
    record = ++state->recorded;
    state->stream = stream;
  }
  return enqueue_call(stream, [state, record] {
    const Lock lock(streams().mutex);
    state->passed = record;
  });
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const auto state = event->state;
  if (const auto e = refuse_captured(*state)) return e;
  if (const auto e = refuse_in_capture(cudaErrorStreamCaptureUnsupported)) return e;
  if (has_passed(*state)) return cudaSuccess;
  ++counts().waits;
  return drain(state->stream->device, [&](Lock& lock) {
    return run(lock, state->stream, true, state.get(), state->recorded);
  });
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  const auto state = event->state;
  if (const auto e = refuse_captured(*state)) return e;
  if (const auto e = refuse_in_capture(cudaErrorStreamCaptureUnsupported)) return e;
  if (has_passed(*state)) return cudaSuccess;
  ++counts().waits;
  return drain(state->stream->device, [&](Lock& lock) {
    run(lock, state->stream, false, state.get(), state->recorded);
    return state->passed >= state->recorded;
  });
}

cudaError_t cudaDeviceSynchronize() {
  if (const auto e = refuse_in_capture(cudaErrorStreamCaptureUnsupported)) return e;
  ++counts().waits;
  return run_device();
}

}  // extern "C"
