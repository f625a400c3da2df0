// The transformer on one rank: forward, then backward, and cached decoding.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "parallel/mesh.h"
#include "trainer/data/batches.h"
#include "trainer/model/activations.h"
#include "trainer/model/dora.h"
#include "trainer/model/embedding.h"
#include "trainer/model/layers.h"
#include "trainer/model/loss.h"

namespace lorashard {

struct ModelOptions {
  DType activation_type = DType::F32;
  int64_t max_tokens = 0;     // of one micro-batch
  int64_t max_positions = 0;  // of one sequence
  Recompute recompute = Recompute::Auto;
  size_t memory_budget = 0;  // bytes for activations that Auto may fill; 0: no limit
  bool overlap = false;  // all-reduces of one half of a micro-batch beside the other half's work
  float dropout = 0;
  uint64_t seed = 0;
  // Above 0: sequences are pairs, chosen and rejected, and the loss is that of direct preference
  // optimization, whose reference is the base without factors.
  double preference_beta = 0;
};

// One sequence being generated: the caches of all layers.
struct DecodeState {
  std::vector<KvCache> caches;
  Buffer memory;
  int64_t position = 0;
};

class Model {
 public:
  // `factors` may be null. `gradients`, a flat buffer of the factors' layout, makes it a model to
  // train, and so do weights that have gradients (attach_gradients); else: forward alone. What is
  // passed by reference or pointer outlives the model.
  Model(Stream& stream, const ModelConfig& config, ModelWeights& weights, Factors* factors,
        float* gradients, Communicator& tensor, const ModelOptions& options);

  // Adds the gradient of the sum of losses over the micro-batch's unmasked tokens (over its pairs)
  // to the flat gradients and those of trained weights, and that sum to loss_totals(). Enqueued:
  // nothing waits. REQUIRES: a model to train.
  void forward_backward(const MicroBatch& batch);
  // forward_backward in two parts. The first brings the micro-batch to the device; the second does
  // no more than enqueue kernels and all-reduces, with the addresses and shapes of what was staged,
  // so that it can be captured in a CUDA graph and launched again for micro-batches of that shape.
  // `batch` lives until forward_backward_staged() returns: on the CPU kernels read it in place.
  void stage(const MicroBatch& batch);
  void forward_backward_staged();
  // Sums since clear_loss(), on the stream's device.
  const LossTotals* loss_totals() const { return loss_.totals(); }
  void clear_loss();
  // The sums alone, without dropout.
  LossTotals evaluate(const MicroBatch& batch);

  // Other factors (null: the base alone) on the same loaded base. REQUIRES: no gradients.
  // Collective over the tensor-parallel group.
  void use_factors(Factors* factors);
  // Forms what is derived from the values of the factors (DoRA's norms): before the first pass, and
  // after each update. Enqueued. Collective over the tensor-parallel group.
  void factors_changed();
  // Gives new DoRA factors their magnitudes. Collective over the tensor-parallel group.
  void initialize_magnitudes();
  DecodeState new_sequence(int64_t capacity);
  // Appends tokens to the sequence; logits (vocab) of the last one, whole on every rank, come to
  // the host.
  void decode(DecodeState& state, std::span<const int32_t> tokens, std::span<float> logits);

  // Which attention runs for micro-batches of full sequences, and why.
  std::string attention_choice() const;
  // Activation checkpointing: layers that recompute everything, and those that recompute the gate
  // and up GEMMs only.
  int64_t recomputed_layers() const {
    return dims_.layers - dims_.first_layer - dims_.kept.all - dims_.kept.attention;
  }
  int64_t recomputed_mlps() const { return dims_.kept.attention; }
  int64_t first_layer() const { return dims_.first_layer; }
  // Bytes of all that forward and backward work in, and of what the layers alone need of it; the
  // rest is the loss's, beyond the memory that it shares with them.
  size_t activation_bytes() const { return memory_.bytes(); }
  size_t layer_bytes() const { return layer_bytes_; }

 private:
  void make_rope_tables();
  void attach_dora();
  void plan();
  AttentionShape attention_shape() const;  // without a window
  std::vector<AttentionShape> attention_shapes() const;
  LayerPart part(int64_t first_row, int64_t tokens, const Sequences& sequences,
                 const int32_t* positions, const DropoutState& dropout) const;
  std::vector<LayerPart> stage_parts(const MicroBatch& batch, bool training);
  void forward_reference(int64_t tokens, std::span<const LayerPart> parts);
  // positions: of the whole micro-batch, on the device.
  void embed(const LinearContext& c, const int32_t* positions, int64_t tokens);
  Matrix embedding_u(int64_t tokens) const;
  MicroBatch largest_micro_batch() const;
  int64_t full_sequences() const;
  LayerStack stack() const;

  Stream& stream_;
  const ModelConfig& config_;
  ModelWeights& weights_;
  Factors* factors_;
  float* gradients_;
  const bool trains_;
  Communicator& tensor_;
  ModelOptions options_;
  ActivationDims dims_;
  Buffer memory_, rope_memory_;
  size_t layer_bytes_ = 0;
  Activations activations_;
  std::optional<DoraNorms> dora_;
  Matrix rope_table_, window_rope_table_;  // one and the same where the config has one rope
  std::vector<SublayerLabels> labels_;
  Embedding embedding_;
  LossHead loss_;
  Staged<int32_t> positions_, offsets_[2], kv_offsets_;
  std::vector<int32_t> part_offsets_[2];
  Staged<uint64_t> row_keys_;
  // The micro-batch that was staged last, on the device.
  struct StagedBatch {
    int64_t tokens = 0;
    std::vector<LayerPart> parts;
  } staged_;
  Buffer logits_;  // of one token, when generating
};

// cos_sin table (positions, head_dim) of kernels/rope.h, angles formed in fp32 as Hugging Face
// does.
void fill_rope_table(Matrix table, const RopeConfig& rope, int64_t head_dim);

}  // namespace lorashard
