// The language of the kernels: the one header that a .cu file includes for it. nvcc compiles a .cu
// to device code; a host compiler compiles the same text to C++ that runs on the simulator of the
// tests (LORASHARD_CUDA=SIM).
//
// Rules that keep a kernel valid in both:
// - launch through launch(); static shared memory through SHARED_ARRAY, dynamic through
//   dyn_shared<T>(); never `extern __shared__`, never the default stream;
// - warp and block communication through the raw intrinsics (__syncthreads, __syncwarp, __shfl_*,
//   __ballot_sync, __any_sync, __all_sync, atomicAdd, atomicMax), no cooperative groups;
// - inline PTX stands in a named device function that has a simulated body beside it, under
//   `#ifdef __CUDACC__`; what its lanes exchange goes through cudasim::warp_exchange.
#pragma once

#ifdef __CUDACC__

#include <cuda_runtime.h>

// T name[N] in the shared memory of the block; its content is undefined at first.
#define SHARED_ARRAY(T, name, N) __shared__ __align__(16) T name[N]

namespace lorashard::cuda {

// The dynamic shared memory of the block, 16-byte aligned.
template <class T>
__device__ __forceinline__ T* dyn_shared() {
  extern __shared__ __align__(16) unsigned char lorashard_dynamic_shared[];
  return reinterpret_cast<T*>(lorashard_dynamic_shared);
}

// Enqueues kernel<<<grid, block, shared_bytes, stream>>>(arguments...). More than 48 KiB of dynamic
// shared memory are asked for first by allow_shared().
template <class... P, class... A>
[[nodiscard]] cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                                 cudaStream_t stream, A&&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...);
}

}  // namespace lorashard::cuda

#else

#include <cudasim/device_language.h>

namespace lorashard::cuda {
using cudasim::dyn_shared;
using cudasim::launch;
}  // namespace lorashard::cuda

#endif

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace lorashard::cuda {

using bf16 = __nv_bfloat16;
using f16 = __half;

// Lets `kernel` be launched with up to `bytes` of dynamic shared memory. Needed above 48 KiB, once
// per kernel and device.
template <class... P>
[[nodiscard]] cudaError_t allow_shared(void (*kernel)(P...), size_t bytes) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                              cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
}

}  // namespace lorashard::cuda
