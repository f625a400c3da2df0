// The only way between host memory and the memory of a stream's device. On the CPU they are one.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/stream.h"
#include "kernels/tensor.h"

namespace lorashard {

// Enqueues a copy into device memory. The host memory may change or go when the call returns.
void copy_to_device(Stream& stream, void* device, const void* host, int64_t bytes);
// Copies from device memory what stands there after all that was enqueued before, and waits for it.
void copy_to_host(Stream& stream, void* host, const void* device, int64_t bytes);
// Enqueues a copy, row by row, as copy_to_device does. Same shape and type; ld may differ.
void copy_matrix_to_device(Stream& stream, Matrix device, ConstMatrix host);

// Copies n values out of device memory, and waits for them.
template <class T>
std::vector<T> host_copy(Stream& stream, const T* device, int64_t n) {
  std::vector<T> host(static_cast<size_t>(n));
  copy_to_host(stream, host.data(), device, n * int64_t{sizeof(T)});
  return host;
}

// A small array that the host fills anew again and again for kernels to read (token ids, positions,
// labels). On the CPU kernels read the host's array itself; on CUDA each put() copies it through
// pinned memory, without waiting for the device unless it is `kInFlight` puts behind.
class StagedBytes {
 public:
  StagedBytes() = default;
  // At most `capacity` bytes at once. The stream outlives this.
  StagedBytes(Stream& stream, int64_t capacity);
  ~StagedBytes();
  StagedBytes(StagedBytes&& other) noexcept;
  StagedBytes& operator=(StagedBytes&& other) noexcept;

  // Where kernels enqueued from now on find the bytes, until the next put(). On the CPU: `host`,
  // which must stay as long.
  const void* put(const void* host, int64_t bytes);

  static constexpr int kInFlight = 4;

 private:
  Stream* stream_ = nullptr;
  void* slots_ = nullptr;  // the CUDA backend's own; null on the CPU
};

template <class T>
class Staged {
 public:
  Staged() = default;
  Staged(Stream& stream, int64_t capacity) : bytes_(stream, capacity * int64_t{sizeof(T)}) {}
  const T* put(std::span<const T> host) {
    return static_cast<const T*>(bytes_.put(host.data(), int64_t(host.size_bytes())));
  }

 private:
  StagedBytes bytes_;
};

}  // namespace lorashard
