#include "kernels/transfer.h"

#include <cstring>
#include <utility>

#include "kernels/cuda/dispatch.h"

namespace lorashard {

void copy_to_device(Stream& stream, void* device, const void* host, int64_t bytes) {
  LORASHARD_RETURN_ON_CUDA(stream, copy_to_device(stream, device, host, bytes));
  if (bytes > 0 && !stream.recording()) std::memcpy(device, host, size_t(bytes));
}

void copy_to_host(Stream& stream, void* host, const void* device, int64_t bytes) {
  LORASHARD_RETURN_ON_CUDA(stream, copy_to_host(stream, host, device, bytes));
  if (bytes > 0 && !stream.recording()) std::memcpy(host, device, size_t(bytes));
}

void copy_matrix_to_device(Stream& stream, Matrix device, ConstMatrix host) {
  LORASHARD_RETURN_ON_CUDA(stream, copy_matrix_to_device(stream, device, host));
  if (stream.recording()) return;
  const auto bytes = size_t(host.cols * size_of(host.dtype));
  for (int64_t r = 0; r < host.rows; ++r) std::memcpy(device.at(r, 0), host.at(r, 0), bytes);
}

StagedBytes::StagedBytes(Stream& stream, [[maybe_unused]] int64_t capacity) : stream_(&stream) {
#if LORASHARD_CUDA
  if (stream.backend() == Backend::CUDA) slots_ = cuda::create_staging(stream, capacity);
#endif
}

StagedBytes::~StagedBytes() {
#if LORASHARD_CUDA
  if (slots_) cuda::destroy_staging(*stream_, slots_);
#endif
}

StagedBytes::StagedBytes(StagedBytes&& other) noexcept
    : stream_(std::exchange(other.stream_, nullptr)),
      slots_(std::exchange(other.slots_, nullptr)) {}

StagedBytes& StagedBytes::operator=(StagedBytes&& other) noexcept {
  std::swap(stream_, other.stream_);
  std::swap(slots_, other.slots_);
  return *this;
}

const void* StagedBytes::put(const void* host, [[maybe_unused]] int64_t bytes) {
  if (stream_)
    LORASHARD_RETURN_ON_CUDA_WITH_SCRATCH(*stream_, stage(*stream_, slots_, host, bytes));
  return host;
}

}  // namespace lorashard
