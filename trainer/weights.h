// This rank's part of the frozen base, layer by layer.
#pragma once

#include <memory>
#include <vector>

#include "checkpoint/base_model.h"
#include "trainer/lora.h"

namespace lorashard {

// One frozen linear layer, this rank's part: weight(N,K), bias(1,N) or empty, and its factors or
// null.
struct Linear {
  ConstMatrix weight, bias;
  const LoraModule* lora = nullptr;
};

// Linear layers that share their input.
struct LinearGroup {
  std::vector<Linear> linears;
  int64_t rank_sum = 0;  // of the adapted ones
  bool adapted() const { return rank_sum > 0; }
};

struct BlockWeights {
  ConstMatrix input_norm, post_norm;  // (1,H)
  ConstMatrix q_norm, k_norm;         // (1,D), or empty
  LinearGroup qkv, o, gate_up, down;  // o and down are row-parallel: their bias is added once,
                                      // after the reduction
  int64_t window = 0;
  bool adapted() const {
    return qkv.adapted() || o.adapted() || gate_up.adapted() || down.adapted();
  }
};

struct ModelWeights {
  ConstMatrix embedding, head;  // (V of this rank, H); the same pages when tied
  Range vocabulary;             // rows of the two that this rank holds
  ConstMatrix final_norm;
  std::vector<BlockWeights> blocks;
  // Query heads and key/value heads of this rank, feed-forward width of this rank.
  HeadSplit heads;
  Range features;
  std::vector<std::shared_ptr<const void>> owners;
};

// Loads rank tp_rank's part of tp_size: on the CPU it stays in the mapped files where it can, on
// CUDA it is copied to the device. `factors` may be null (no adapter); it must outlive the weights.
// Errors: status 2 naming file and tensor.
ModelWeights load_weights(Stream& stream, const BaseModel& base, int tp_rank, int tp_size,
                          const Factors* factors);

// Points the layers at other factors (null: none), for swapping adapters on one loaded base.
void attach_factors(ModelWeights& weights, const ModelConfig& config, const Factors* factors);

}  // namespace lorashard
