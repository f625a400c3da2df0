// Which rows and keys a block of an attention kernel works on, and the launch loop that all of
// these kernels share.
//
// The query heads that share one key/value head are rows of one problem: row r is head r % heads of
// query r / heads (as on the CPU, kernels/cpu/attention_task.h). Neighbouring rows so share their
// keys, a group's queries are read while its keys are in shared memory, and a block of rows ends
// nearly at one position. blockIdx = (block of rows or keys, key/value head, sequence).
#pragma once

#include <algorithm>

#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/portable.h"

namespace lorashard::cuda {

// One sequence and key/value head.
struct Problem {
  int q0, queries, k0, keys;       // first row and count, of the queries and of the keys
  int kv_head, first_head, heads;  // query heads first_head .. first_head + heads
  int rows;                        // queries * heads
  uint32_t reciprocal;             // of heads, times 2^32, rounded up

  // Exact while rows * heads < 2^32 (own_forward and own_backward see to it).
  __device__ __forceinline__ int query_of(int row) const {
    return heads == 1 ? row : int(uint64_t(uint32_t(row)) * reciprocal >> 32);
  }
  // Where the row's query stands among the keys.
  __device__ __forceinline__ int position_of(int row) const {
    return keys - queries + query_of(row);
  }
};

template <class T>
__device__ __forceinline__ Problem this_problem(const AttentionArgs<T>& a) {
  Problem p;
  const int sequence = a.first_sequence + int(blockIdx.z);
  p.q0 = a.q_offsets[sequence];
  p.queries = a.q_offsets[sequence + 1] - p.q0;
  p.k0 = a.kv_offsets[sequence];
  p.keys = a.kv_offsets[sequence + 1] - p.k0;
  p.kv_head = int(blockIdx.y);
  const int first = p.kv_head * a.group - a.group_offset, end = first + a.group;
  p.first_head = first > 0 ? first : 0;
  p.heads = (end < a.heads ? end : a.heads) - p.first_head;
  if (p.heads < 0) p.heads = 0;
  p.rows = p.queries * p.heads;
  p.reciprocal = p.heads > 1 ? 0xffffffffu / uint32_t(p.heads) + 1 : 0;
  return p;
}

// The row's D elements in a matrix of queries (Tq, heads * D).
template <class T>
__device__ __forceinline__ T* query_row(const Rows<T>& m, const Problem& p, int row, int head_dim) {
  const int query = p.query_of(row), head = p.first_head + row - query * p.heads;
  return m.at(p.q0 + query, int64_t(head) * head_dim);
}
// The row's element in a matrix (Tq, heads).
template <class T>
__device__ __forceinline__ T* head_element(const Rows<T>& m, const Problem& p, int row) {
  const int query = p.query_of(row);
  return m.at(p.q0 + query, p.first_head + row - query * p.heads);
}

// The keys [first, end) that rows [row, row_end) see between them.
struct KeyRange {
  int first, end;
};
__device__ __forceinline__ KeyRange keys_seen(const Problem& p, int row, int row_end, int window) {
  const int before = p.position_of(row) - window + 1;
  return {before > 0 ? before : 0, p.position_of(row_end - 1) + 1};
}
// The rows [first, end) that see some of the keys [key, key_end).
__device__ __forceinline__ KeyRange rows_seeing(const Problem& p, int key, int key_end,
                                                int window) {
  const int shift = p.keys - p.queries;
  const int first = key > shift ? key - shift : 0;
  // The last position that sees key_end - 1 is key_end + window - 2.
  const int64_t end = int64_t(key_end) + window - 1 - shift;
  const int last = end < p.queries ? int(end > 0 ? end : 0) : p.queries;
  return {first * p.heads, last * p.heads};
}

// Calls launch_part(grid, args) for as many launches as a grid's height of 65535 asks for.
template <class T, class F>
void for_grids(const AttentionArgs<T>& args, const AttentionGrid& grid, int64_t blocks,
               F launch_part) {
  constexpr int kMost = 65535;
  AttentionArgs<T> part = args;
  for (int first = 0; first < grid.sequences && blocks > 0; first += kMost) {
    part.first_sequence = first;
    launch_part(dim3(unsigned(blocks), unsigned(args.kv_heads),
                     unsigned(std::min(kMost, grid.sequences - first))),
                part);
  }
}

// Blocks of `size` rows that the longest sequence fills.
template <class T>
int64_t row_blocks(const AttentionArgs<T>& args, const AttentionGrid& grid, int size) {
  return (grid.max_queries * std::min(args.group, args.heads) + size - 1) / size;
}

}  // namespace lorashard::cuda
