#include "tests/cudasim/tests/kernels.h"

#include "kernels/cuda/portable.h"

using lorashard::cuda::allow_shared;
using lorashard::cuda::dyn_shared;
using lorashard::cuda::launch;

namespace {

constexpr int kMost = 1024;

__global__ void scale(float* y, const float* x, float a, int n) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) y[i] += a * x[i];
}

__global__ void missing_barrier(float* y, int n) {
  SHARED_ARRAY(float, s, kMost);
  const int t = int(threadIdx.x);
  s[t] = float(t);
  if (t < n) y[t] = s[n - 1 - t];
  __syncthreads();
}

__global__ void with_barrier(float* y, int n) {
  SHARED_ARRAY(float, s, kMost);
  const int t = int(threadIdx.x);
  s[t] = float(t);
  __syncthreads();
  if (t < n) y[t] = s[n - 1 - t];
}

__global__ void writes_at(float* y, int at) {
  if (threadIdx.x == 3) y[at] = 1;
}

__global__ void divergent_barrier(float* y) {
  if (threadIdx.x < blockDim.x / 2) __syncthreads();
  y[threadIdx.x] = 1;
}

__global__ void two_barriers(float* y) {
  if (threadIdx.x < blockDim.x / 2)
    __syncthreads();
  else
    __syncthreads();
  y[threadIdx.x] = 1;
}

__global__ void shared_behind(float* y) {
  SHARED_ARRAY(float, s, 64);
  SHARED_ARRAY(float, other, 64);
  s[threadIdx.x < 64 ? threadIdx.x : 64] = 1;
  other[threadIdx.x % 64] = 1;
  __syncthreads();
  y[threadIdx.x] = s[0] + other[0];
}

__global__ void dynamic_behind(float* y, int n) {
  float* s = dyn_shared<float>();
  s[threadIdx.x] = 1;
  if (threadIdx.x == 0) s[n] = 1;
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];
}

__global__ void unwritten_shared(float* y) {
  SHARED_ARRAY(float, s, kMost);
  if (threadIdx.x > 0) s[threadIdx.x] = 1;
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];
}

__global__ void caller_not_in_mask(float* y) { y[threadIdx.x] = __shfl_sync(0x0000ffffu, 1.0f, 0); }

__global__ void lane_exited(float* y) {
  if (threadIdx.x == 5) return;
  y[threadIdx.x] = __shfl_xor_sync(~0u, 1.0f, 1);
}

__global__ void divergent_shuffles(float* y) {
  float v = 1;
  if (threadIdx.x % 2)
    v = __shfl_xor_sync(~0u, v, 2);
  else
    v = __shfl_xor_sync(~0u, v, 4);
  y[threadIdx.x] = v;
}

__global__ void start_order(float* y, int* counter) {
  y[atomicAdd(counter, 1)] = float(threadIdx.x);
}

__global__ void shuffles(float* y) {
  const int t = int(threadIdx.x);
  const float v = float(t);
  y[t] = __shfl_xor_sync(~0u, v, 1);
  y[32 + t] = __shfl_down_sync(~0u, v, 3, 8);
  y[64 + t] = __shfl_up_sync(~0u, v, 3, 8);
  y[96 + t] = __shfl_sync(~0u, v, 9, 16);
  y[128 + t] = float(__popc(__ballot_sync(~0u, t % 4 == 0)));
  // Only the lower half takes part: what it asks of the upper half is a NaN.
  y[160 + t] = t < 16 ? __shfl_sync(0x0000ffffu, v, t + 8) : -1.0f;
  const double wide = __shfl_xor_sync(~0u, double(t) + 0.25, 16);
  y[192 + t] = float(wide) + float(__any_sync(~0u, t == 31)) + float(__all_sync(~0u, t >= 0));
}

__global__ void unaligned_vector(float* y) {
  const float4 v = *reinterpret_cast<const float4*>(y + 1);
  y[0] = v.x;
}

}  // namespace

cudaError_t run(Kernel kernel, float* y, const float* x, float a, int n, int threads,
                cudaStream_t stream, size_t shared_bytes) {
  switch (kernel) {
    case Kernel::SCALE:
      return launch(scale, (n + threads - 1) / threads, threads, shared_bytes, stream, y, x, a, n);
    case Kernel::MISSING_BARRIER:
      return launch(missing_barrier, 1, threads, 0, stream, y, n);
    case Kernel::WITH_BARRIER:
      return launch(with_barrier, 1, threads, 0, stream, y, n);
    case Kernel::WRITES_BEHIND:
      return launch(writes_at, 1, threads, 0, stream, y, n);
    case Kernel::WRITES_BEFORE:
      return launch(writes_at, 1, threads, 0, stream, y, -1);
    case Kernel::DIVERGENT_BARRIER:
      return launch(divergent_barrier, 1, threads, 0, stream, y);
    case Kernel::TWO_BARRIERS:
      return launch(two_barriers, 1, threads, 0, stream, y);
    case Kernel::SHARED_BEHIND:
      return launch(shared_behind, 1, threads, 0, stream, y);
    case Kernel::DYNAMIC_BEHIND:
      return launch(dynamic_behind, 1, threads, sizeof(float) * size_t(n), stream, y, n);
    case Kernel::UNWRITTEN_SHARED:
      return launch(unwritten_shared, 1, threads, 0, stream, y);
    case Kernel::CALLER_NOT_IN_MASK:
      return launch(caller_not_in_mask, 1, threads, 0, stream, y);
    case Kernel::LANE_EXITED:
      return launch(lane_exited, 1, threads, 0, stream, y);
    case Kernel::DIVERGENT_SHUFFLES:
      return launch(divergent_shuffles, 1, threads, 0, stream, y);
    case Kernel::START_ORDER:
      return launch(start_order, 1, threads, 0, stream, y, reinterpret_cast<int*>(y + n));
    case Kernel::SHUFFLES:
      return launch(shuffles, 1, 32, 0, stream, y);
    case Kernel::UNALIGNED_VECTOR:
      return launch(unaligned_vector, 1, 1, 0, stream, y);
  }
  return cudaErrorInvalidValue;
}

cudaError_t allow_dynamic_shared(size_t bytes) { return allow_shared(scale, bytes); }
