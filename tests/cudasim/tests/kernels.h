// Kernels for the tests of the simulator: some right, some wrong in a way that it must notice.
#pragma once

#include <cuda_runtime_api.h>

// Each is launched with `threads` threads in one block over y(n) but where said otherwise.
enum class Kernel {
  SCALE,               // y[i] += a x[i], many blocks
  MISSING_BARRIER,     // y[i] = what thread n - 1 - i wrote to shared memory
  WITH_BARRIER,        // y[i] = what that thread wrote, behind a barrier
  WRITES_BEHIND,       // y[n]
  WRITES_BEFORE,       // y[-1]
  DIVERGENT_BARRIER,   // half of the threads
  TWO_BARRIERS,        // threads at different __syncthreads
  SHARED_BEHIND,       // past a static array
  DYNAMIC_BEHIND,      // past the dynamic shared memory
  UNWRITTEN_SHARED,    // y[i] = shared memory that nobody wrote
  CALLER_NOT_IN_MASK,  // of a shuffle
  LANE_EXITED,         // that a shuffle's mask names
  DIVERGENT_SHUFFLES,  // lanes of one mask at different shuffles
  START_ORDER,         // y[k] = number of the thread that started as number k
  SHUFFLES,            // y(7 * 32): each kind of warp collective
  UNALIGNED_VECTOR,    // a float4 from y + 1
};

cudaError_t run(Kernel kernel, float* y, const float* x, float a, int n, int threads,
                cudaStream_t stream, size_t shared_bytes = 0);
cudaError_t allow_dynamic_shared(size_t bytes);
