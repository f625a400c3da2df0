// One rank's model as sizes alone: what the cost model walks over instead of weights.
#pragma once

#include <cstdint>
#include <vector>

#include "checkpoint/model_config.h"
#include "trainer/activations.h"

namespace lorashard {

// A linear layer that is adapted with this rank.
struct AdaptedLinear {
  LinearModule linear;
  int64_t rank = 0;
};

// Those that an adapter's settings choose. `modules` as from match_targets (checkpoint/adapter.h).
std::vector<AdaptedLinear> adapted_linears(const std::vector<LinearModule>& modules,
                                           const AdapterConfig& config);

// What is trained how. The data-parallel degree is `data`; each of its replicas has `tensor` ranks.
struct TrainingJob {
  ModelConfig model;
  std::vector<AdaptedLinear> adapted;  // at least one
  DType base_type = DType::BF16;       // as the base is stored
  DType activation_type = DType::F32;  // products, activations: F32 or BF16
  int64_t sequence = 512;              // tokens of every sequence
  int64_t micro_batch = 2;             // sequences at once on a rank
  int64_t global_batch = 2;            // sequences of a step: a multiple of micro_batch * data
  double counted_share = 1;            // of the labels that can count, sequence - 1 a sequence
  int tensor = 1, data = 1;
  Recompute recompute = Recompute::Auto;
  bool overlap = false;          // parallel.overlap: two halves of a micro-batch in flight
  double activation_budget = 0;  // bytes that Auto may fill; 0: what the machine has left
  float dropout = 0;
};

// This rank's part of one linear layer.
struct LinearShape {
  int64_t out = 0, in = 0;
  int64_t rank = 0;  // 0: not adapted
};

struct GroupShape {
  std::vector<LinearShape> linears;
  bool bias = false;
  int64_t rank_sum = 0;
  bool adapted() const { return rank_sum > 0; }
};

struct BlockShape {
  PerGroup<GroupShape> groups;
  int64_t window = 0;
  bool adapted() const;
};

struct RankShape {
  ActivationDims dims;  // for micro_batch * sequence tokens; what is kept is not yet chosen
  std::vector<BlockShape> blocks;
  int64_t vocabulary = 0;       // rows of embedding and head on this rank
  int64_t chunk_rows = 0;       // of logits at most (trainer/loss.h)
  int ranks = 1;                // that share the model
  double base_bytes = 0;        // of this rank's base, tied pages once
  int64_t factor_elements = 0;  // of all factors; every rank holds all
};

RankShape rank_shape(const TrainingJob& job, int tensor_rank);

// Bytes of the one arena that Model plans: by itself, and what the loss needs beyond that, in the
// memory that layers do not use between forward and backward.
struct ArenaBytes {
  double activations = 0, loss = 0;
  double total() const { return activations + loss; }
};
ArenaBytes arena_bytes(const RankShape& shape, KeptLayers kept);

// What Model decides to keep: with Auto, as much as fits `budget` bytes (0: no limit).
KeptLayers kept_layers(const RankShape& shape, Recompute recompute, double budget);

}  // namespace lorashard
