// The project's own attention kernels: attention_forward.cu, attention_backward.cu (bf16, tensor
// cores) and attention_f32.cu (fp32 arithmetic). Contract: kernels/attention.h; attention.cpp
// chooses.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/attention.h"

namespace lorashard::cuda {

inline constexpr int kMaxHeadDim = 256;

// A matrix in device memory as kernels take it: element (i, j) at data[i * ld + j].
template <class T>
struct Rows {
  T* data;
  int64_t ld;
  __host__ __device__ T* at(int64_t i, int64_t j) const { return data + i * ld + j; }
};

// The arguments of every attention kernel, passed by value. T: __nv_bfloat16 or float.
template <class T>
struct AttentionArgs {
  Rows<const T> q, k, v, o, d_o;
  Rows<T> write_o, dq, dk, dv;
  Rows<const float> lse;
  Rows<float> write_lse;  // data may be null
  Rows<float> delta;      // (Tq, heads): sum over D of d_o * o; backward only
  const int32_t *q_offsets, *kv_offsets;
  int first_sequence;  // that blockIdx.z = 0 works on
  int heads, kv_heads, head_dim, group, group_offset;
  int window;  // INT32_MAX: none
  float scale;
  bool vectors;  // 16-byte accesses are allowed for all of q, k, v, o, d_o and the outputs
};

// What the launches need of the lengths, from the host's offsets.
struct AttentionGrid {
  int sequences = 0;
  int64_t queries = 0;                    // in all
  int64_t max_queries = 0, max_keys = 0;  // of one sequence
};

// Enqueue attention. head_dim <= kMaxHeadDim. Errors: status 3.
void own_forward(cudaStream_t stream, const AttentionArgs<__nv_bfloat16>& args,
                 const AttentionGrid& grid);
void own_forward(cudaStream_t stream, const AttentionArgs<float>& args, const AttentionGrid& grid);
// delta: (queries, heads) floats of scratch, which is written first.
void own_backward(cudaStream_t stream, const AttentionArgs<__nv_bfloat16>& args,
                  const AttentionGrid& grid);
void own_backward(cudaStream_t stream, const AttentionArgs<float>& args, const AttentionGrid& grid);

// attention_lse.cu: lse of `batch` sequences of `length` queries between our order, (Tq, heads),
// and cuDNN's, (batch, heads, length).
struct LseOrder {
  int64_t batch, heads, length;
};
void lse_to_heads(cudaStream_t stream, float* by_head, Rows<const float> rows,
                  const LseOrder& order);
void lse_from_heads(cudaStream_t stream, Rows<float> rows, const float* by_head,
                    const LseOrder& order);

}  // namespace lorashard::cuda
