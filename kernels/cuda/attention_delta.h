// delta(Tq, heads) = sum over D of d_o * o, in fp32: what both kernels of the backward pass need.
#pragma once

#include "kernels/cuda/attention_rows.h"
#include "kernels/cuda/check.h"

namespace lorashard::cuda {

inline constexpr int kDeltaThreads = 256, kDeltaLanes = 8;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }

// Eight lanes for a row and head.
template <class T>
__global__ void __launch_bounds__(kDeltaThreads)
    attention_delta_kernel(AttentionArgs<T> a, int64_t pairs) {
  const int64_t pair = (int64_t(blockIdx.x) * kDeltaThreads + threadIdx.x) / kDeltaLanes;
  const int lane = int(threadIdx.x) % kDeltaLanes;
  float sum = 0;
  const int64_t row = pair / a.heads, head = pair % a.heads;
  if (pair < pairs) {
    const T* o = a.o.at(row, head * a.head_dim);
    const T* g = a.d_o.at(row, head * a.head_dim);
    constexpr int kVector = 16 / int(sizeof(T));
    if (a.vectors) {
      struct alignas(16) Vector {
        T x[kVector];
      };
      for (int c = lane * kVector; c < a.head_dim; c += kDeltaLanes * kVector) {
        const Vector x = *reinterpret_cast<const Vector*>(o + c);
        const Vector y = *reinterpret_cast<const Vector*>(g + c);
#pragma unroll
        for (int i = 0; i < kVector; ++i) sum += to_float(x.x[i]) * to_float(y.x[i]);
      }
    } else {
      for (int c = lane; c < a.head_dim; c += kDeltaLanes) sum += to_float(o[c]) * to_float(g[c]);
    }
  }
  for (int i = kDeltaLanes / 2; i > 0; i /= 2)
    sum += __shfl_xor_sync(0xffffffffu, sum, i, kDeltaLanes);
  if (pair < pairs && lane == 0) *a.delta.at(row, head) = sum;
}

template <class T>
void attention_delta(cudaStream_t stream, const AttentionArgs<T>& args, const AttentionGrid& grid) {
  const int64_t pairs = grid.queries * args.heads;
  if (pairs == 0) return;
  const int64_t blocks = (pairs * kDeltaLanes + kDeltaThreads - 1) / kDeltaThreads;
  LORASHARD_CUDA_CHECK(launch(attention_delta_kernel<T>, dim3(unsigned(blocks)),
                              dim3(kDeltaThreads), 0, stream, args, pairs));
}

}  // namespace lorashard::cuda
