// Causal softmax attention over variable-length sequences, blocked so that no T x T matrix exists
// (Dao et al. 2022, FlashAttention; Dao 2023 for the backward pass).
#pragma once

#include <span>
#include <string>

#include "kernels/stream.h"
#include "kernels/tensor.h"

namespace lorashard {

struct AttentionShape {
  int64_t heads = 0;         // query heads of this rank
  int64_t kv_heads = 0;      // key/value heads of this rank
  int64_t head_dim = 0;      // D
  int64_t group = 1;         // query heads per key/value head in the whole model
  int64_t group_offset = 0;  // position of this rank's first query head in its group:
                             // query head i uses key/value head (group_offset + i) / group
  float scale = 1;           // multiplies q k^T
  int64_t window = 0;        // 0, or only the last `window` keys (the query's own included)
};

// Sequences lie one after the other in the rows. Sequence s has queries
// q_offsets[s]..q_offsets[s+1] and keys kv_offsets[s]..kv_offsets[s+1]; its last query stands at
// its last key, so with a cache there are more keys than queries. In training both are the same.
// REQUIRES: no sequence has more queries than keys.
struct Sequences {
  std::span<const int32_t> q_offsets, kv_offsets;  // in host memory
  // Copies of them on the stream's device; the CPU does without.
  const int32_t *device_q_offsets = nullptr, *device_kv_offsets = nullptr;
};

// o(Tq, heads*D), lse(Tq, heads) F32 = log-sum-exp of the scaled scores, kept for backward (may be
// empty). q(Tq, heads*D), k and v (Tkv, kv_heads*D): F32 or BF16; softmax and accumulation in fp32.
void attention_forward(Stream& stream, Matrix o, Matrix lse, ConstMatrix q, ConstMatrix k,
                       ConstMatrix v, const Sequences& sequences, const AttentionShape& shape);

// dq, dk, dv '=' the gradients (types as q), for the same arguments, o and lse of the forward pass.
// Key/value heads sum over the query heads of this rank.
void attention_backward(Stream& stream, Matrix dq, Matrix dk, Matrix dv, ConstMatrix d_o,
                        ConstMatrix q, ConstMatrix k, ConstMatrix v, ConstMatrix o, ConstMatrix lse,
                        const Sequences& sequences, const AttentionShape& shape);

// (query, key) pairs of causal attention of the last `queries` of `keys` tokens, each looking at
// its last `window` keys (0: at all).
double attention_pairs(int64_t queries, int64_t keys, int64_t window);

// Makes what the first call for `sequences` sequences of `length` tokens would otherwise make:
// plans and scratch on CUDA, nothing on the CPU.
void prepare_attention(Stream& stream, DType type, const AttentionShape& shape, int64_t sequences,
                       int64_t length);
// Which implementation runs for them, and why: a line for logs.
std::string attention_choice(Stream& stream, DType type, const AttentionShape& shape,
                             int64_t sequences, int64_t length);

}  // namespace lorashard
