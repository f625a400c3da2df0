// Final norm, output head and cross entropy, vocabulary-parallel: only unmasked rows are
// computed, in chunks, and no rank ever holds the full logits.
#pragma once

#include <span>
#include <vector>

#include "kernels/transfer.h"
#include "parallel/collectives.h"
#include "trainer/model/activations.h"
#include "trainer/model/weights.h"

namespace lorashard {

// What the loss works in: `tokens` rows at most, of which chunk_rows are logits at once.
struct LossDims {
  int64_t tokens, hidden, norm_stats, chunk_rows;
  int64_t vocabulary;  // of this rank
  int64_t ranks;       // over which the vocabulary is split
  DType type;          // of activations
};
struct LossBuffers {
  Matrix picked, normed, d_normed;  // (tokens,H)
  Matrix norm_stats;                // (tokens, norm_stats) F32
  Matrix logits;                    // (chunk,V) F32
  Matrix stats;                     // (ranks * chunk,3) F32
  Matrix lse;                       // (chunk,1) F32
};
LossBuffers plan_loss(Arena& arena, const LossDims& dims);

// Rows of logits computed at once, the same on every rank of the group.
int64_t loss_chunk_rows(int64_t vocabulary, int ranks, int64_t tokens);

// For micro-batches of at most max_tokens.
class LossHead {
 public:
  LossHead(Stream& stream, const ModelConfig& config, const ModelWeights& weights,
           Communicator& tensor, int64_t max_tokens, DType activation_type);

  // Allocates what the calls below work in. To be called before them.
  void plan(Arena& arena) { at_ = plan_loss(arena, dims_); }
  // Brings the labels of a micro-batch to the device: T entries in host memory, -100 masked.
  void stage(std::span<const int32_t> labels);
  // Adds the sum over unmasked rows of -log p(label), formed in double, to *sum(). Unless dx(T,H)
  // is empty it gets the gradient of that sum for x(T,H), the same on every rank.
  void forward_backward(ConstMatrix x, Matrix dx);
  // Where the losses add up, on the stream's device.
  double* sum() const { return sum_.as<double>(); }

  // logits(1, V of this rank) F32 for row `row` of x: for generation.
  void logits(ConstMatrix x, int64_t row, Matrix logits);

  int64_t chunk_rows() const { return dims_.chunk_rows; }

 private:
  Stream& stream_;
  const ModelConfig& config_;
  const ModelWeights& weights_;
  Communicator& tensor_;
  LossDims dims_;
  std::vector<int32_t> rows_, labels_;
  Staged<int32_t> device_rows_, device_labels_;
  const int32_t *staged_rows_ = nullptr, *staged_labels_ = nullptr;
  Buffer sum_;
  LossBuffers at_;
};

}  // namespace lorashard
