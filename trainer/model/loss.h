// Final norm, output head and cross entropy, vocabulary-parallel: only unmasked rows are
// computed, in chunks, and no rank ever holds the full logits.
#pragma once

#include <span>
#include <vector>

#include "kernels/preference.h"
#include "kernels/transfer.h"
#include "parallel/collectives.h"
#include "trainer/model/activations.h"
#include "trainer/model/linear.h"

namespace lorashard {

// What the loss works in: `tokens` rows at most, of which chunk_rows are logits at once.
struct LossDims {
  int64_t tokens, hidden, norm_stats, chunk_rows;
  int64_t vocabulary;      // of this rank
  int64_t ranks;           // over which the vocabulary is split
  DType type;              // of activations
  double beta;             // above 0: of pairs (kernels/preference.h)
  int64_t lora_rank = 0;   // of the head
  int64_t token_rows = 0;  // ModelWeights::head_tokens
};
struct LossBuffers {
  Matrix picked, normed, d_normed;  // (tokens,H)
  Matrix norm_stats;                // (tokens, norm_stats) F32
  Matrix logits;                    // (chunk,V) F32
  Matrix stats;                     // (ranks * chunk,3) F32
  Matrix lse;                       // (chunk,1) F32; of pairs (tokens,1)
  Matrix row_losses, row_factors;   // of pairs: (tokens,1) F64, F32
  Matrix u, t;                      // (chunk,lora_rank) F32; empty without LoRA
  Matrix tokens;                    // (chunk,token_rows) F32: logits of such rows
};
LossBuffers plan_loss(Arena& arena, const LossDims& dims);

// Rows of logits computed at once, the same on every rank of the group.
int64_t loss_chunk_rows(int64_t vocabulary, int ranks, int64_t tokens);

// For micro-batches of at most max_tokens. beta above 0: of pairs of sequences, chosen and
// rejected, whose loss is that of direct preference optimization.
class LossHead {
 public:
  LossHead(Stream& stream, const ModelConfig& config, const ModelWeights& weights,
           Communicator& tensor, int64_t max_tokens, DType activation_type, double beta);

  // Allocates what the calls below work in. To be called before them.
  void plan(Arena& arena);
  // Brings the labels of a micro-batch to the device: T entries in host memory, -100 masked.
  // offsets(S + 1): where its sequences begin.
  // Dropout needs the tokens' row_keys, T in host memory.
  void stage(std::span<const int32_t> labels, std::span<const int32_t> offsets,
             std::span<const uint64_t> row_keys = {});
  // Adds the sum over unmasked rows of -log p(label), formed in double, to totals()->loss; of pairs
  // the sum over pairs, and what belongs to it. Unless dx(T,H) is empty it gets the gradient of
  // that sum for x(T,H), the same on every rank, and the head its own where it is trained. `layers`
  // is their context; of its dropout the rate and seed count, where stage() got row_keys.
  void forward_backward(const LinearContext& layers, ConstMatrix x, Matrix dx);
  // Of pairs, before forward_backward(): x is the reference's.
  void reference(const LinearContext& layers, ConstMatrix x);
  // Where the losses add up, on the stream's device.
  LossTotals* totals() const { return totals_.as<LossTotals>(); }

  // logits(1, V of this rank) F32 for row `row` of x: for generation.
  void logits(const LinearContext& c, ConstMatrix x, int64_t row, Matrix logits);

  int64_t chunk_rows() const { return dims_.chunk_rows; }

 private:
  // Rows [begin, begin + n) of the unmasked ones; their logits are in memory at once.
  struct Chunk {
    int64_t begin, n;
  };
  std::vector<Chunk> chunks() const;
  bool pairs() const { return dims_.beta > 0; }
  void normalize(ConstMatrix x);
  LinearContext head_context(const LinearContext& layers, const Chunk& chunk) const;
  Matrix chunk_logits(const LinearContext& layers, const Chunk& chunk);
  void statistics(const Chunk& chunk, Matrix logits, float* lse, double* loss, double* row_losses);
  void gradient(const LinearContext& layers, const Chunk& chunk, Matrix logits, const float* lse,
                const float* row_factors);
  void finish_backward(Matrix dx);
  void logps(const LinearContext& layers, ConstMatrix x, double* of_sequences);
  // logits(n,V) of normed(n,H); backward: gradients of what is trained, and d_normed(n,H) of this
  // rank's columns.
  void head_forward(const LinearContext& c, Matrix logits, ConstMatrix normed);
  void head_backward(const LinearContext& c, Matrix d_normed, Matrix logits, ConstMatrix normed);

  Stream& stream_;
  const ModelConfig& config_;
  const ModelWeights& weights_;
  Communicator& tensor_;
  LossDims dims_;
  std::vector<int32_t> rows_, labels_, row_offsets_;
  Staged<int32_t> device_rows_, device_labels_, device_row_offsets_;
  const int32_t *staged_rows_ = nullptr, *staged_labels_ = nullptr, *staged_row_offsets_ = nullptr;
  Buffer totals_;
  Buffer policy_logps_, reference_logps_;  // of pairs: one double a sequence
  std::vector<uint64_t> keys_;             // of rows_; empty without dropout
  Staged<uint64_t> device_keys_;
  const uint64_t* staged_keys_ = nullptr;
  LossBuffers at_;
};

}  // namespace lorashard
