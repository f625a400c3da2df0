// This rank's part of the frozen base, layer by layer.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/base_model.h"
#include "trainer/model/factors.h"
#include "trainer/model/frozen_weight.h"

namespace lorashard {

// One frozen linear module, this rank's part: W(N,K), bias(1,N) or empty, and its factors or null.
struct Linear {
  std::string name;  // as in the base
  FrozenWeight weight;
  ConstMatrix bias;
  const LoraModule* lora = nullptr;
};

// The linear modules of one InputGroup.
struct LinearGroup {
  std::vector<Linear> linears;
  bool row_parallel = false;  // the output is partial until it is all-reduced; then comes the bias
  int64_t lora_rank = 0;      // sum of the adapted modules' ranks: columns of u = x A^T
  bool adapted() const { return lora_rank > 0; }
};

// A mixture of experts: this rank's features of every expert, and the factors of the two parameters
// of stacked experts, or null.
struct Expert {
  FrozenWeight gate, up, down;
};
struct ExpertWeights {
  std::vector<Expert> experts;  // empty: the layer has a dense MLP
  Range features;               // of each expert's width
  int64_t per_token = 0;        // experts that a token goes to
  const LoraModule *gate_up = nullptr, *down = nullptr;
  explicit operator bool() const { return !experts.empty(); }
};

struct BlockWeights {
  PerNorm<ConstMatrix> norms;  // gains (1,H), of query and key (1,D); empty where a family has none
  // With experts, GateUp and Down have no linear modules; their lora_rank is that of a token's
  // choices together.
  PerGroup<LinearGroup> groups;
  ExpertWeights experts;
  int layer = 0;
  int64_t window = 0;  // 0: attention over the whole sequence
  bool adapted() const;
};

struct ModelWeights {
  FrozenWeight embedding, head;  // (V of this rank, H); the same pages when tied
  Range vocabulary;              // rows of the two that this rank holds
  ConstMatrix final_norm;
  std::vector<BlockWeights> blocks;
  // Query heads and key/value heads of this rank, feed-forward width of this rank.
  HeadSplit heads;
  Range features;
  std::vector<std::shared_ptr<const void>> owners;
};

// The part of a tensor that this rank holds, on the stream's device.
using TensorSource = std::function<ConstMatrix(const TensorSpec&, const TensorPart&)>;
// Rank tp_rank's part of tp_size, each tensor of the model asked of `source` once. No factors yet.
ModelWeights arrange_weights(const ModelConfig& config, int tp_rank, int tp_size,
                             const TensorSource& source);

// Those of `base`: on the CPU they stay in the mapped files where they can, on CUDA they are copied
// to the device. `factors` may be null (no adapter); they outlive the weights. Errors: status 2
// naming file and tensor.
ModelWeights load_weights(Stream& stream, const BaseModel& base, int tp_rank, int tp_size,
                          const Factors* factors);

// Points the linear modules at other factors (null: none), for swapping adapters on one loaded
// base.
void attach_factors(ModelWeights& weights, const Factors* factors);

}  // namespace lorashard
