// Sums over threads in a fixed order: the same bits in every run.
#pragma once

#include "kernels/cuda/portable.h"

namespace lorashard::cuda {

// Over each group of `lanes` neighbouring threads, a power of two up to 32; every one gets the sum.
// All threads of the warp take part.
template <class T>
__device__ __forceinline__ T team_sum(T x, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2)
    x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

// Over a block of THREADS threads, a multiple of 32; every one gets the sum. `parts`: shared memory
// of THREADS / 32 values, which may be used again after a barrier.
template <int THREADS, class T>
__device__ __forceinline__ T block_sum(T x, T* parts) {
  x = team_sum(x, 32);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  T sum = parts[0];
#pragma unroll
  for (int i = 1; i < THREADS / 32; ++i) sum += parts[i];
  return sum;
}

}  // namespace lorashard::cuda
