// Page-locked host memory through which the host feeds a device without waiting for it.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>

#include "kernels/cuda/device.h"

namespace lorashard::cuda {

// Page-locked host memory; freed with the owner.
class PinnedMemory {
 public:
  PinnedMemory() = default;
  explicit PinnedMemory(size_t bytes);
  ~PinnedMemory();
  PinnedMemory(PinnedMemory&& other) noexcept;
  PinnedMemory& operator=(PinnedMemory&& other) noexcept;

  char* data() const { return data_; }

 private:
  char* data_ = nullptr;
};

// An event without timing; destroyed with the owner.
class Event {
 public:
  Event();
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  // Marks what was enqueued on `stream` so far.
  void record(cudaStream_t stream);
  // The host waits for what was marked last; not at all if nothing was.
  void wait(CudaStream& stream);
  bool passed() const { return cudaEventQuery(event_) == cudaSuccess; }
  // Work enqueued on `stream` from now on waits for what was marked last.
  void order(cudaStream_t stream);

 private:
  cudaEvent_t event_ = nullptr;
};

// Slots of page-locked memory used in turn. A slot is used again once the copy that last read
// it is done.
class PinnedRing {
 public:
  static constexpr int kSlots = 4;
  static constexpr size_t kSlotBytes = size_t{4} << 20;

  explicit PinnedRing(CudaStream& stream, size_t slot_bytes = kSlotBytes);

  size_t slot_bytes() const { return slot_bytes_; }
  // The next slot, free to be filled: waits for the copy that reads it still.
  char* acquire();
  // To be called when the copy out of the slot acquired last has been enqueued on the stream.
  void release();

 private:
  struct Slot {
    PinnedMemory memory;
    Event read;
  };
  CudaStream& stream_;
  size_t slot_bytes_;
  std::array<Slot, kSlots> slots_;
  int next_ = 0;
};

}  // namespace lorashard::cuda
