// Copies between host and device, and the page-locked memory they go through.
#include <algorithm>
#include <cassert>
#include <cstring>
#include <utility>

#include "kernels/cuda/check.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/pinned_ring.h"
#include "kernels/transfer.h"

namespace lorashard::cuda {

PinnedMemory::PinnedMemory(size_t bytes) {
  void* memory = nullptr;
  LORASHARD_CUDA_CHECK(cudaMallocHost(&memory, bytes));
  data_ = static_cast<char*>(memory);
}
PinnedMemory::~PinnedMemory() {
  if (data_) cudaFreeHost(data_);
}
PinnedMemory::PinnedMemory(PinnedMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)) {}
PinnedMemory& PinnedMemory::operator=(PinnedMemory&& other) noexcept {
  std::swap(data_, other.data_);
  return *this;
}

Event::Event() { LORASHARD_CUDA_CHECK(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming)); }
Event::~Event() { cudaEventDestroy(event_); }
void Event::record(cudaStream_t stream) { LORASHARD_CUDA_CHECK(cudaEventRecord(event_, stream)); }
void Event::wait(CudaStream& stream) { wait_for_event(stream, event_); }
void Event::order(cudaStream_t stream) {
  LORASHARD_CUDA_CHECK(cudaStreamWaitEvent(stream, event_, 0));
}

PinnedRing::PinnedRing(CudaStream& stream, size_t slot_bytes)
    : stream_(stream), slot_bytes_(slot_bytes) {
  for (Slot& slot : slots_) slot.memory = PinnedMemory(slot_bytes);
}

char* PinnedRing::acquire() {
  Slot& slot = slots_[size_t(next_)];
  slot.read.wait(stream_);
  return slot.memory.data();
}

void PinnedRing::release() {
  slots_[size_t(next_)].read.record(stream_.compute);
  next_ = (next_ + 1) % kSlots;
}

void copy_to_device(Stream& stream, void* device, const void* host, int64_t bytes) {
  PinnedRing& ring = *stream.cuda()->ring;
  for (int64_t done = 0; done < bytes;) {
    const size_t n = std::min(ring.slot_bytes(), size_t(bytes - done));
    char* slot = ring.acquire();
    std::memcpy(slot, static_cast<const char*>(host) + done, n);
    LORASHARD_CUDA_CHECK(cudaMemcpyAsync(static_cast<char*>(device) + done, slot, n,
                                         cudaMemcpyHostToDevice, stream_of(stream)));
    ring.release();
    done += int64_t(n);
  }
}

void copy_to_host(Stream& stream, void* host, const void* device, int64_t bytes) {
  if (bytes == 0) return synchronize(stream);
  // Through page-locked memory: a copy to other memory makes the driver wait a second time.
  PinnedRing& ring = *stream.cuda()->ring;
  for (int64_t done = 0; done < bytes;) {
    const size_t n = std::min(ring.slot_bytes(), size_t(bytes - done));
    char* slot = ring.acquire();
    LORASHARD_CUDA_CHECK(cudaMemcpyAsync(slot, static_cast<const char*>(device) + done, n,
                                         cudaMemcpyDeviceToHost, stream_of(stream)));
    synchronize(stream);
    std::memcpy(static_cast<char*>(host) + done, slot, n);
    done += int64_t(n);
  }
}

void copy_matrix_to_device(Stream& stream, Matrix device, ConstMatrix host) {
  assert(device.rows == host.rows && device.cols == host.cols && device.dtype == host.dtype);
  PinnedRing& ring = *stream.cuda()->ring;
  const int64_t width = host.cols * size_of(host.dtype);
  if (width == 0) return;
  if (device.ld == device.cols && host.ld == host.cols)
    return cuda::copy_to_device(stream, device.data, host.data, host.rows * width);
  const int64_t rows_of_slot = int64_t(ring.slot_bytes()) / width;
  if (rows_of_slot == 0) {
    for (int64_t r = 0; r < host.rows; ++r)
      cuda::copy_to_device(stream, device.at(r, 0), host.at(r, 0), width);
    return;
  }
  for (int64_t r = 0; r < host.rows; r += rows_of_slot) {
    const int64_t n = std::min(rows_of_slot, host.rows - r);
    char* slot = ring.acquire();
    for (int64_t i = 0; i < n; ++i) std::memcpy(slot + i * width, host.at(r + i, 0), size_t(width));
    LORASHARD_CUDA_CHECK(cudaMemcpy2DAsync(
        device.at(r, 0), size_t(device.ld * size_of(device.dtype)), slot, size_t(width),
        size_t(width), size_t(n), cudaMemcpyHostToDevice, stream_of(stream)));
    ring.release();
  }
}

namespace {

// The device's copy needs one place only: the stream runs the next put's copy after the kernels
// that read this one.
struct Staging {
  Staging(Stream& stream, int64_t capacity)
      : device(stream, size_t(capacity)), ring(*stream.cuda(), size_t(capacity)) {}
  Buffer device;
  PinnedRing ring;
};
static_assert(PinnedRing::kSlots == StagedBytes::kInFlight);

}  // namespace

void* create_staging(Stream& stream, int64_t capacity) {
  use_device(stream);
  return new Staging(stream, std::max<int64_t>(capacity, 1));
}

void destroy_staging(Stream& stream, void* staging) {
  settle(*stream.cuda());  // copies may still read the page-locked memory
  delete static_cast<Staging*>(staging);
}

const void* stage(Stream& stream, void* staging, const void* host, int64_t bytes) {
  auto& s = *static_cast<Staging*>(staging);
  assert(bytes >= 0 && size_t(bytes) <= s.device.bytes());
  if (bytes > 0 && !stream.reserving()) {
    char* slot = s.ring.acquire();
    std::memcpy(slot, host, size_t(bytes));
    LORASHARD_CUDA_CHECK(cudaMemcpyAsync(s.device.data(), slot, size_t(bytes),
                                         cudaMemcpyHostToDevice, stream_of(stream)));
    s.ring.release();
  }
  return s.device.data();
}

}  // namespace lorashard::cuda
