// Where kernels run: a backend, its threads and its scratch memory. Every kernel takes one.
//
// On the CPU a Stream executes at once. On CUDA it stands for a stream of the device: kernels are
// enqueued and their memory is the device's, which the host reaches through kernels/transfer.h
// only. Code above kernels/ and parallel/ is written for the second case and runs on both.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "kernels/record.h"

namespace lorashard {

struct CudaStream;  // kernels/cuda/device.h

// Whether the program has the CUDA backend, and how many devices answer (0 without it).
bool built_with_cuda();
int cuda_devices();
// Whether they are simulated: the program was built with the simulator in place of the libraries.
bool cuda_is_simulated();
// The maker's name of a device that answers; "" without the backend.
std::string cuda_device_name(int device);

// What scratch memory is for: of one purpose, one piece is in use at a time.
enum class ScratchSlot : uint8_t {
  GemmA,  // operands and result of a GEMM in another type
  GemmB,
  GemmResult,
  GemmBias,
  NormGain,  // rows of parameters in fp32
  NormBias,
  ResidualBias,
  Attention,
  LoraDropout,
  Reduction,  // partial sums
  Count
};

class Stream {
 public:
  // A CPU stream. `threads` worker threads per kernel; 0: as many as the process may run on.
  explicit Stream(int threads = 0);
  // `threads`: of kernels on the CPU. CUDA: a stream of device number `device`. Error (status 3)
  // if it does not answer.
  Stream(Backend backend, int threads, int device = 0);
  // Notes in `record` what it is asked for and runs nothing (kernels/record.h).
  explicit Stream(KernelRecord& record);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  Backend backend() const { return cuda_ ? Backend::CUDA : Backend::CPU; }
  int threads() const { return threads_; }
  bool recording() const { return record_ != nullptr; }
  KernelRecord* recorder() const { return record_; }
  // True on a recording stream, which then has noted the kernel: it must not run.
  bool record(const char* kernel, const KernelWork& work) {
    return record_ != nullptr && note(kernel, work);
  }
  // Whose kernels are run, or recorded.
  Backend kernel_backend() const { return record_ ? record_->backend : backend(); }
  // Waits until all that was enqueued is done.
  void synchronize();
  // Memory of a CUDA device that is free; 0 on the CPU.
  size_t available_bytes() const;
  // What the CUDA backend keeps for the stream; null on the CPU.
  CudaStream* cuda() const { return cuda_; }
  // Scratch memory of the device of at least `bytes`, 64-byte aligned, valid until the next call of
  // scratch() on the same slot. Grows, never shrinks.
  void* scratch(ScratchSlot slot, size_t bytes);
  // Allocates all the scratch that `work` needs, so that no such work allocates later. CUDA: calls
  // it with kernels, copies and collectives left out, so that pointers may be to nothing; only the
  // calls' shapes and types matter. CPU: does nothing, for memory there comes page by page.
  void reserve_for(const std::function<void()>& work);
  bool reserving() const { return reserving_; }
  // Bytes of scratch that the stream holds.
  size_t scratch_bytes() const;
  // The most scratch that a slot gives without allocating, once it was reserved; before that no
  // limit.
  size_t reserved_bytes(ScratchSlot slot) const;

 private:
  bool note(const char* kernel, const KernelWork& work);

  int threads_;
  KernelRecord* record_ = nullptr;
  CudaStream* cuda_ = nullptr;  // owned
  struct Scratch {
    void* memory = nullptr;
    size_t bytes = 0;
    size_t wanted = 0;  // by what is reserved for
    bool reserved = false;
  };
  Scratch scratch_[size_t(ScratchSlot::Count)];
  bool reserving_ = false;
};

// Memory of the stream's device, 64-byte aligned (huge pages advised when large), zeroed; freed
// with the owner, on CUDA before the stream.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Stream& stream, size_t bytes);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
  Stream* stream_ = nullptr;  // null if the memory is the host's
};

}  // namespace lorashard
