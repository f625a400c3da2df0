// Tensor core mma, the loads of their fragments, and asynchronous copies, as named device
// functions: one PTX instruction each under nvcc; in simulation a body that follows the fragment
// layouts of the PTX ISA (9.7.15, "Matrix fragments for mma.m16n8k16"; "ldmatrix"), so that
// kernels are tested with their real fragment arithmetic.
//
// All warp functions are called by the 32 lanes together. With g = lane / 4 and t = lane % 4 a lane
// holds, two bf16 to a register, the lower column or row in the lower half:
//   A (16 x 16)  a[0] (g, 2t..)  a[1] (g + 8, 2t..)  a[2] (g, 2t + 8..)  a[3] (g + 8, 2t + 8..)
//   B (16 x 8)   b[0] (2t.., g)  b[1] (2t + 8.., g)
//   C (16 x 8)   c[0], c[1] (g, 2t..)   c[2], c[3] (g + 8, 2t..)    in fp32
// so that two neighbouring C fragments, rounded to bf16, are an A fragment (as_a below).
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/cuda/portable.h"
#ifndef __CUDACC__
#include <cudasim/async_copies.h>
#endif

namespace lorashard::cuda {

struct FragmentA {
  uint32_t x[4];
};
struct FragmentB {
  uint32_t x[2];
};
struct FragmentC {
  float x[4];
};

// Two floats rounded to bf16; `low` in the lower half.
__device__ __forceinline__ uint32_t pack(float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &both, sizeof bits);
  return bits;
}

// The 16 x 16 matrix [left, right] of C fragments as an A fragment.
__device__ __forceinline__ FragmentA as_a(const FragmentC& left, const FragmentC& right) {
  return {{pack(left.x[0], left.x[1]), pack(left.x[2], left.x[3]), pack(right.x[0], right.x[1]),
           pack(right.x[2], right.x[3])}};
}

#if defined(__CUDACC__)

// c += a b. Products are exact; how the tensor core rounds their sum is not specified.
__device__ __forceinline__ void mma(FragmentC& c, const FragmentA& a, const FragmentB& b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c.x[0]), "+f"(c.x[1]), "+f"(c.x[2]), "+f"(c.x[3])
      : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b.x[0]), "r"(b.x[1]));
}

// Four 8 x 8 matrices of bf16 from shared memory. Lane l passes the address of row l % 8 of matrix
// l / 8 (16-byte aligned); r[m] is matrix m, row g, columns 2t and 2t + 1.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const __nv_bfloat16* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}
// load_matrices of the matrices' transposes: r[m] is matrix m, rows 2t and 2t + 1, column g.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4],
                                                         const __nv_bfloat16* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}

// Starts a copy of 16 bytes from global to shared memory, or of 16 zero bytes if !real (`from` is
// not read then). Both aligned to 16 bytes.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool real) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(__cvta_generic_to_global(from)), "r"(real ? 16 : 0)
               : "memory");
}
// Makes one group of all copies started since the last commit.
__device__ __forceinline__ void copy_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most `kNewest` of this thread's groups are under way. Other threads see the bytes
// after a barrier.
template <int kNewest>
__device__ __forceinline__ void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kNewest) : "memory");
}

// 2^x with a relative error of 2^-22; results below 2^-126 are zero.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

#else

// The half of a register as a float.
__device__ inline float half_of(uint32_t pair, int high) {
  return __uint_as_float(high ? pair & 0xffff0000u : pair << 16);
}

// Accumulates in fp32, one term after the other.
__device__ inline void mma(FragmentC& c, const FragmentA& a, const FragmentB& b) {
  const uint32_t mine[6] = {a.x[0], a.x[1], a.x[2], a.x[3], b.x[0], b.x[1]};
  const auto* lanes = cudasim::warp_exchange(~0u, mine, 6).word;
  const unsigned lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  for (int k = 0; k < 16; ++k) {
    // Row r of A at column k: lane 4 (r % 8) + k % 8 / 2, register 2 (k / 8) + r / 8.
    // Column n of B at row k: lane 4 n + k % 8 / 2, register k / 8.
    const int quad = k % 8 / 2, half = k % 2, block = k / 8;
    const uint32_t* row = lanes[4 * g + quad];
    const float upper = half_of(row[2 * block], half);
    const float lower = half_of(row[2 * block + 1], half);
    for (unsigned n = 0; n < 2; ++n) {
      const float column = half_of(lanes[4 * (2 * t + n) + quad][4 + block], half);
      c.x[n] += upper * column;
      c.x[n + 2] += lower * column;
    }
  }
}

// The row addresses that the lanes of the warp pass to ldmatrix.
struct MatrixRows {
  explicit MatrixRows(const __nv_bfloat16* row) {
    uint32_t mine[2];
    memcpy(mine, &row, sizeof row);
    lanes = cudasim::warp_exchange(~0u, mine, 2).word;
  }
  const __nv_bfloat16* of(unsigned lane) const {
    const __nv_bfloat16* row;
    memcpy(&row, lanes[lane], sizeof row);
    if (reinterpret_cast<uintptr_t>(row) % 16)
      cudasim::trap("ldmatrix of an unaligned row", cudasim::Site::here());
    return row;
  }
  const uint32_t (*lanes)[cudasim::Exchange::kMostWords];
};

__device__ inline void load_matrices(uint32_t (&r)[4], const __nv_bfloat16* row) {
  const MatrixRows rows(row);
  const unsigned lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  for (unsigned m = 0; m < 4; ++m)
    r[m] = *reinterpret_cast<const uint32_t*>(rows.of(8 * m + g) + 2 * t);
}

__device__ inline void load_matrices_transposed(uint32_t (&r)[4], const __nv_bfloat16* row) {
  const MatrixRows rows(row);
  const unsigned lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  for (unsigned m = 0; m < 4; ++m) {
    const __nv_bfloat16 pair[2] = {rows.of(8 * m + 2 * t)[g], rows.of(8 * m + 2 * t + 1)[g]};
    memcpy(&r[m], pair, sizeof r[m]);
  }
}

// A copy happens when it is waited for, and its target holds NaN until then: who reads too early or
// forgets to wait is found out.
__device__ inline void copy_async(void* to, const void* from, bool real) {
  if (!cudasim::async_copies().add(to, from, real))
    cudasim::trap("too many copies under way, or an unaligned one", cudasim::Site::here());
}
__device__ inline void copy_commit() { cudasim::async_copies().commit(); }
template <int kNewest>
__device__ inline void copy_wait() {
  cudasim::async_copies().wait(kNewest);
}

__device__ inline float exp2_approx(float x) {
  const float y = exp2f(x);
  return y < 0x1p-126f ? 0 : y;
}

#endif

}  // namespace lorashard::cuda
