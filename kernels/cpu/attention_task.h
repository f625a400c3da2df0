// One unit of work of attention on the CPU: a sequence, a key/value head, and ranges of rows and
// keys. The driver (kernels/attention.cpp) makes the tasks, kernels/cpu/attention_blocks.h runs
// them.
#pragma once

#include "kernels/tensor.h"

namespace lorashard {

// The `heads` query heads that share one key/value head are laid out as rows of one problem:
// row r is head r % heads of query r / heads. Rows so neighbouring share their keys, so that keys
// and values are read once for all of them, and a block of rows ends at nearly one position.
//
// Blocks are computed transposed, keys down and rows across: one vector holds one key's scores for
// W rows, the softmax needs no sum across lanes, and keys and values are read where they lie.
struct AttentionTask {
  int64_t heads, head_dim;
  int64_t queries, keys;       // of the sequence
  int64_t row_begin, row_end;  // of queries * heads; row_begin is a multiple of kRowBlock
  int64_t key_begin, key_end;  // backward only; key_begin is a multiple of kKeyBlock
  float scale;
  int64_t window;  // 0: none

  // The rows of this sequence; of q, o, d_o, dq the columns of the heads; of k, v, dk, dv those of
  // the key/value head; lse: (queries, heads). The forward pass writes write_o and, when it is
  // there, write_lse. The backward pass writes dq when it is there, and dk and dv when they are;
  // with all rows in one task dk and dv are complete, and with all keys dq is.
  ConstMatrix q, k, v, o, lse, d_o;
  Matrix write_o, write_lse, dq, dk, dv;
};

inline constexpr int64_t kRowBlock = 64, kKeyBlock = 64;

// Floats of scratch a task needs.
inline int64_t attention_scratch(const AttentionTask& t, bool backward) {
  const int64_t row_block = t.head_dim * kRowBlock, key_block = t.head_dim * kKeyBlock;
  int64_t n = 3 * row_block + 2 * key_block + 2 * kRowBlock * kKeyBlock + 4 * kRowBlock;
  if (backward) {
    n += 3 * row_block;
    if (t.dk && t.dk.dtype != DType::F32) n += 2 * (t.key_end - t.key_begin) * t.head_dim;
  }
  return n;
}

}  // namespace lorashard
