// Streams and device memory.
#include <algorithm>
#include <string>

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
  made->ring = std::make_shared<PinnedRing>(made->compute);
  made->matmul = make_matmul_plans();
  return made.release();
}

void destroy_stream(CudaStream* stream) {
  cudaSetDevice(stream->device);
  cudaStreamSynchronize(stream->compute);  // what it runs uses what goes now
  stream->attention.reset();
  stream->matmul.reset();
  stream->ring.reset();
  cudaStreamDestroy(stream->compute);
  delete stream;
}

void use_device(const Stream& stream) {
  LORASHARD_CUDA_CHECK(cudaSetDevice(stream.cuda()->device));
}

void synchronize(Stream& stream) { LORASHARD_CUDA_CHECK(cudaStreamSynchronize(stream_of(stream))); }

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
  cudaSetDevice(stream.cuda()->device);
  cudaStreamSynchronize(stream_of(stream));
  cudaFree(memory);
}

}  // namespace lorashard::cuda
