// Kernels that exercise kernels/cuda/mma.h one function at a time.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

namespace lorashard::cuda {

// d(16, 8) = c(16, 8) + a(16, 16) b by one mma; b is (16, 8), or, if `transposed`, (8, 16) and its
// transpose is used.
void test_mma(cudaStream_t stream, float* d, const __nv_bfloat16* a, const __nv_bfloat16* b,
              const float* c, bool transposed);

// 512 elements through shared memory in two asynchronous copies of 16 bytes a thread, those of odd
// threads of the second half being zeros; each half comes out with its threads reversed.
void test_copy(cudaStream_t stream, __nv_bfloat16* to, const __nv_bfloat16* from,
               bool wait_for_all);

}  // namespace lorashard::cuda
