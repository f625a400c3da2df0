// The embedding of a micro-batch, vocabulary-parallel, with what an adapter has for it: LoRA, a
// weight that is trained itself, or rows of single tokens.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/transfer.h"
#include "trainer/model/linear.h"

namespace lorashard {

// For micro-batches of at most max_tokens. What is passed by reference outlives it.
class Embedding {
 public:
  Embedding(Stream& stream, const ModelConfig& config, const ModelWeights& weights,
            int64_t max_tokens);

  // Brings the ids of a micro-batch (host memory) to the device. On the CPU they are read in place.
  void stage(std::span<const int32_t> ids);
  // x(T,H) = this rank's part of the embeddings, which an all-reduce completes: the tokens whose
  // rows it holds, zero elsewhere. u(T,lora_rank) F32 is kept for backward; empty without LoRA.
  // scratch: (T,H) of x's type.
  void forward(const LinearContext& c, Matrix x, Matrix u, Matrix scratch) const;
  // Adds the gradients of what is trained, given that of the whole x, the same on every rank.
  void backward(const LinearContext& c, ConstMatrix dx, ConstMatrix u) const;

 private:
  // Rows for the look-up, T each; -1: none.
  struct Rows {
    const int32_t* of_table = nullptr;
    const int32_t* of_tokens = nullptr;  // ModelWeights::embedding_tokens; null: there are none
  };

  const ModelConfig& config_;
  const ModelWeights& weights_;
  std::vector<int32_t> host_[4];
  Staged<int32_t> device_[4];
  Rows rows_, trained_;  // all, and those that get gradients: not that of padding
};

}  // namespace lorashard
