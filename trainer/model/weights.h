// This rank's part of the frozen base, layer by layer.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/base_model.h"
#include "trainer/model/factors.h"
#include "trainer/model/frozen_weight.h"
#include "trainer/model/norm.h"

namespace lorashard {

// What DoRA multiplies a module's outputs by (trainer/model/dora.h), (1,N) F32; empty without it.
struct DoraVectors {
  Matrix scale;         // magnitude / norm
  Matrix excess;        // scale - 1
  Matrix inverse_norm;  // 1 / norm
  explicit operator bool() const { return bool(scale); }
};

// One frozen linear module, this rank's part: W(N,K), bias(1,N) or empty, and its factors or null.
// A fused module (GPT-2's c_attn) is one Linear for each of its pieces q, k and v: they share its
// A, and each has its own rows of B.
struct Linear {
  std::string name;  // as in the base
  FrozenWeight weight;
  ConstMatrix bias;  // the base's, or the trained one
  size_t piece = 0;
  const LoraModule* lora = nullptr;
  int64_t u_column = 0;  // where the module's columns of its group's u begin
  ConstMatrix base_bias = {};
  const AdapterTensor* trained_bias = nullptr;  // null: the base's
  DoraVectors dora = {};
  // Where gradients of the two are added, F32; empty: frozen, as LoRA leaves them.
  Matrix weight_gradient = {}, bias_gradient = {};
  bool trained() const { return lora || trained_bias || weight_gradient || bias_gradient; }
};

// The linear modules of one InputGroup.
struct LinearGroup {
  std::vector<Linear> linears;
  bool row_parallel = false;  // the output is partial until it is all-reduced; then comes the bias
  int64_t lora_rank = 0;      // sum of the adapted modules' ranks: columns of u = x A^T
  bool adapted() const { return lora_rank > 0; }
  // Whether a factor, weight or bias gets a gradient; one that the group's input is needed for.
  bool trained() const;
  bool needs_input() const;
};

struct BlockWeights {
  PerNorm<NormWeights> norms;  // (1,H), of query and key (1,D); empty where a family has none
  PerNorm<Matrix> norm_gradients = {};  // of gains, as Linear::weight_gradient
  PerGroup<LinearGroup> groups;
  int64_t window = 0;         // 0: attention over the whole sequence
  float attention_scale = 1;  // multiplies q k^T
  bool trained() const;       // something of it gets a gradient
  bool trains_norm() const;
};

// Rows of embedding or head that stand in place of the weight's (PEFT's trainable tokens).
struct TokenRows {
  ConstMatrix values;                   // (n,H) F32, whole on every rank
  Matrix gradient;                      // of the same shape; empty: none is wanted
  const int32_t* device_ids = nullptr;  // n, of the vocabulary
  const std::vector<int64_t>* ids = nullptr;
  explicit operator bool() const { return ids != nullptr; }
  // The row that stands for a token, or -1.
  int32_t find(int32_t token) const;
};

struct ModelWeights {
  std::string embedding_name;  // "model.embed_tokens"
  FrozenWeight embedding;      // (V of this rank, H)
  LinearGroup head;            // one module of that shape, the same pages when tied
  Range vocabulary;            // rows of the two that this rank holds
  FrozenWeight positions;      // (positions, H), or empty: learned positions
  NormWeights final_norm;
  // Where the gradient of the embedding is added, F32; empty: it is frozen. That of the head is
  // Linear::weight_gradient; one matrix where they are tied and both trained.
  Matrix embedding_gradient = {}, final_norm_gradient = {};
  // What an adapter has for the two, beside LoRA of the head (attach_factors). A weight that is
  // trained itself stands in place of the base's, which is kept for the next adapter.
  const LoraModule* embedding_lora = nullptr;
  TokenRows embedding_tokens, head_tokens;
  FrozenWeight base_embedding, base_head;
  bool lora_trains = false;  // the factors get gradients
  // Whether something of the embedding gets a gradient.
  bool trains_embedding() const;
  std::vector<BlockWeights> blocks;
  // Query heads and key/value heads of this rank, feed-forward width of this rank.
  HeadSplit heads;
  Range features;
  std::vector<std::shared_ptr<const void>> owners;
};

// A part of a tensor, on the stream's device.
using TensorSource = std::function<ConstMatrix(const TensorSpec&, const TensorPart&)>;
// Rank tp_rank's part of tp_size, each part of a tensor asked of `source` once. No factors yet.
ModelWeights arrange_weights(const ModelConfig& config, int tp_rank, int tp_size,
                             const TensorSource& source);

// Those of `base`: on the CPU they stay in the mapped files where they can, on CUDA they are copied
// to the device. `factors` may be null (no adapter); they outlive the weights. Errors: status 2
// naming file and tensor.
ModelWeights load_weights(Stream& stream, const BaseModel& base, int tp_rank, int tp_size,
                          const Factors* factors);

// Points the modules at other factors and trained tensors (null: none, the base's), for swapping
// adapters on one loaded base. `gradients`: a flat buffer of their layout for the gradients of
// trained weights, or null.
void attach_factors(ModelWeights& weights, const Factors* factors, float* gradients = nullptr);
// Where the gradient of this rank's part of a tensor is added, F32; empty for one that is frozen,
// or whose gradient another rank forms.
using GradientPlace = std::function<Matrix(const std::string& tensor)>;
// Trains tensors of the model themselves: asks `place` for each that the weights have.
void attach_gradients(ModelWeights& weights, const ModelConfig& config, const GradientPlace& place);

}  // namespace lorashard
