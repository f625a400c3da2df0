#include "tests/cuda/mma_kernels.h"

#include "kernels/cuda/check.h"
#include "kernels/cuda/mma.h"

namespace lorashard::cuda {
namespace {

constexpr int kLd = 24;  // of the tiles in shared memory

// d(16, 8) = c(16, 8) + a(16, 16) b(16, 8), by one warp. Fragments of a and c come element by
// element from global memory, as the layouts say; b through ldmatrix from b (16, 8), or from its
// transpose (8, 16).
__global__ void mma_kernel(float* d, const bf16* a, const bf16* b, const float* c,
                           bool transposed) {
  SHARED_ARRAY(bf16, tile, 16 * kLd);
  const int lane = int(threadIdx.x), g = lane / 4, t = lane % 4;
  // Both forms fill a 16 x 16 tile; what the mma does not use is NaN.
  for (int i = lane; i < 16 * 16; i += 32) {
    const int row = i / 16, col = i % 16;
    const bool used = transposed ? row < 8 : col < 8;
    tile[row * kLd + col] =
        used ? b[transposed ? row * 16 + col : row * 8 + col] : __float2bfloat16(NAN);
  }
  __syncwarp();
  uint32_t r[4];
  FragmentB fragment_b;
  if (transposed) {
    load_matrices(r, tile + (lane / 16 * 8 + lane % 8) * kLd + lane / 8 % 2 * 8);
    fragment_b = {{r[0], r[1]}};
  } else {
    load_matrices_transposed(r, tile + lane % 16 * kLd + lane / 16 * 8);
    fragment_b = {{r[0], r[1]}};
  }
  const auto pair = [&](int row, int col) {
    return pack(__bfloat162float(a[row * 16 + col]), __bfloat162float(a[row * 16 + col + 1]));
  };
  const FragmentA fragment_a = {
      {pair(g, 2 * t), pair(g + 8, 2 * t), pair(g, 2 * t + 8), pair(g + 8, 2 * t + 8)}};
  FragmentC sum = {
      {c[g * 8 + 2 * t], c[g * 8 + 2 * t + 1], c[(g + 8) * 8 + 2 * t], c[(g + 8) * 8 + 2 * t + 1]}};
  mma(sum, fragment_a, fragment_b);
  d[g * 8 + 2 * t] = sum.x[0];
  d[g * 8 + 2 * t + 1] = sum.x[1];
  d[(g + 8) * 8 + 2 * t] = sum.x[2];
  d[(g + 8) * 8 + 2 * t + 1] = sum.x[3];
}

// to(8 n) = from(8 n), 16 bytes a thread, by asynchronous copies in two groups; waits for all, or
// for the first only.
__global__ void copy(bf16* to, const bf16* from, bool wait_for_all) {
  SHARED_ARRAY(uint4, shared, 64);
  const uint4* source = reinterpret_cast<const uint4*>(from);
  const int i = int(threadIdx.x);
  copy_async(&shared[i], source + i, true);
  copy_commit();
  copy_async(&shared[i + 32], source + i + 32, i % 2 == 0);
  copy_commit();
  if (wait_for_all)
    copy_wait<0>();
  else
    copy_wait<1>();
  __syncwarp();
  uint4* target = reinterpret_cast<uint4*>(to);
  target[i] = shared[31 - i];
  target[i + 32] = shared[63 - i];
}

}  // namespace

void test_mma(cudaStream_t stream, float* d, const bf16* a, const bf16* b, const float* c,
              bool transposed) {
  LORASHARD_CUDA_CHECK(launch(mma_kernel, dim3(1), dim3(32), 0, stream, d, a, b, c, transposed));
}

void test_copy(cudaStream_t stream, bf16* to, const bf16* from, bool wait_for_all) {
  LORASHARD_CUDA_CHECK(launch(copy, dim3(1), dim3(32), 0, stream, to, from, wait_for_all));
}

}  // namespace lorashard::cuda
