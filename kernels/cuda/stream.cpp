// Streams and device memory.
#include <chrono>
#include <exception>
#include <string>
#include <thread>

#include "kernels/cuda/check.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/matmul_plans.h"
#include "kernels/cuda/pinned_ring.h"

namespace lorashard::cuda {
namespace {

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  LORASHARD_CUDA_CHECK(cudaDeviceGetAttribute(&value, which, device));
  return value;
}

}  // namespace

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();  // no driver, or none for this toolkit: no device, and no error kept
  return 0;
}

std::string device_name(int device) {
  cudaDeviceProp properties;
  LORASHARD_CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
  return properties.name;
}

CudaStream* create_stream(int device) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess)
    fail_run("compute.backend", std::string("no CUDA device answers: ") +
                                    cudaGetErrorString(status) +
                                    "; install a driver for this CUDA version or use backend: CPU");
  if (device < 0 || device >= count)
    fail_run("compute.backend", "CUDA device " + std::to_string(device) + " was asked for, " +
                                    std::to_string(count) +
                                    " answer here; start at most one rank per device of a host");
  LORASHARD_CUDA_CHECK(cudaSetDevice(device));
  auto made = std::make_unique<CudaStream>();
  made->device = device;
  made->multiprocessors = attribute(cudaDevAttrMultiProcessorCount, device);
  made->compute_capability = attribute(cudaDevAttrComputeCapabilityMajor, device) * 10 +
                             attribute(cudaDevAttrComputeCapabilityMinor, device);
  LORASHARD_CUDA_CHECK(cudaStreamCreateWithFlags(&made->compute, cudaStreamNonBlocking));
  made->ring = std::make_shared<PinnedRing>(*made);
  made->matmul = make_matmul_plans();
  return made.release();
}

size_t available_bytes(const CudaStream& stream) {
  size_t available = 0, total = 0;
  LORASHARD_CUDA_CHECK(cudaSetDevice(stream.device));
  LORASHARD_CUDA_CHECK(cudaMemGetInfo(&available, &total));
  return available;
}

void destroy_stream(CudaStream* stream) {
  settle(*stream);  // what it runs uses what goes now
  stream->attention.reset();
  stream->matmul.reset();
  stream->ring.reset();
  cudaStreamDestroy(stream->compute);
  delete stream;
}

void use_device(const Stream& stream) {
  LORASHARD_CUDA_CHECK(cudaSetDevice(stream.cuda()->device));
}

namespace {

// How often a waiting host looks after its collectives.
constexpr auto kWatch = std::chrono::milliseconds(10);
// The host asks without pause for this long, for the wait is mostly short; then it sleeps between.
constexpr auto kBusy = std::chrono::milliseconds(2);

template <class Query>
void wait_watching(CudaStream& stream, const char* call, Query query) {
  using Clock = std::chrono::steady_clock;
  struct End {
    CudaStream& stream;
    ~End() { stream.watched(); }
  } const end{stream};
  const Clock::time_point start = Clock::now();
  Clock::time_point watched = start;
  for (;;) {
    const cudaError_t status = query();
    if (status != cudaErrorNotReady) return check(status, call);
    const Clock::time_point now = Clock::now();
    if (now - watched > kWatch) {
      stream.watch();
      watched = now;
    }
    if (now - start > kBusy) std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

}  // namespace

// Where no collective can hang the device the driver's own wait is the best.
void wait_for_stream(CudaStream& stream) {
  if (stream.watch)
    wait_watching(stream, "cudaStreamQuery", [&] { return cudaStreamQuery(stream.compute); });
  else
    LORASHARD_CUDA_CHECK(cudaStreamSynchronize(stream.compute));
}

void wait_for_event(CudaStream& stream, cudaEvent_t event) {
  if (stream.watch)
    wait_watching(stream, "cudaEventQuery", [&] { return cudaEventQuery(event); });
  else
    LORASHARD_CUDA_CHECK(cudaEventSynchronize(event));
}

void settle(CudaStream& stream) noexcept {
  cudaSetDevice(stream.device);
  if (std::uncaught_exceptions() > 0 && stream.abandon) stream.abandon();
  cudaStreamSynchronize(stream.compute);
}

void synchronize(Stream& stream) { wait_for_stream(*stream.cuda()); }

void* allocate(Stream& stream, size_t bytes) {
  if (bytes == 0) return nullptr;
  use_device(stream);
  void* memory = nullptr;
  const cudaError_t status = cudaMalloc(&memory, bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    size_t free_bytes = 0, all_bytes = 0;
    cudaMemGetInfo(&free_bytes, &all_bytes);
    fail_run(where(), "cannot allocate " + std::to_string(bytes) + " bytes, " +
                          std::to_string(free_bytes) + " of " + std::to_string(all_bytes) +
                          " are free; use a smaller micro_batch_size or seq_len, or more "
                          "tensor-parallel ranks");
  }
  check(status, "cudaMalloc");
  LORASHARD_CUDA_CHECK(cudaMemsetAsync(memory, 0, bytes, stream_of(stream)));
  return memory;
}

// Runs in destructors: errors stay for the next checked call, which meets them too.
void release(Stream& stream, void* memory) {
  if (!memory) return;
  settle(*stream.cuda());
  cudaFree(memory);
}

}  // namespace lorashard::cuda
