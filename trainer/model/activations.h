// All memory that forward and backward passes work in, planned before the first step: one arena,
// laid out once, nothing allocated in a step.
#pragma once

#include <functional>
#include <vector>

#include "trainer/model/block.h"

namespace lorashard {

// Hands out 64-byte aligned pieces of one buffer. With no buffer it only counts.
class Arena {
 public:
  Arena() = default;
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}
  Matrix take(int64_t rows, int64_t cols, DType type);
  // Where the next piece would begin; going back there lets pieces that are never in use at the
  // same time share memory.
  size_t mark() const { return next_; }
  void back_to(size_t mark) { next_ = mark; }
  // Bytes that the buffer needs.
  size_t used() const { return used_; }

 private:
  char* base_ = nullptr;
  size_t next_ = 0, used_ = 0;
};

// What the backward pass recomputes (activation checkpointing).
enum class Recompute : uint8_t { Auto, None, Mlp, Full };

// Of the adapted layers and those between, from the top: how many keep everything, and how many of
// those below them all but gate and up (Keep::Attention). The others keep their inputs only.
struct KeptLayers {
  int64_t all = 0, attention = 0;
  bool operator==(const KeptLayers&) const = default;
};

// What of `layers` a run keeps: with Auto, as much as `fits` says yes to.
KeptLayers kept_layers(int64_t layers, Recompute recompute,
                       const std::function<bool(KeptLayers)>& fits);

struct ActivationDims {
  int64_t tokens = 0;  // T at most
  int64_t hidden = 0;
  int64_t q_width = 0, kv_width = 0, features = 0;  // this rank's columns
  int64_t heads = 0, kv_heads = 0;                  // this rank's
  int64_t experts = 0, experts_per_token = 0;
  int64_t expert_features = 0;  // this rank's columns of an expert
  bool qk_norm = false, post_norms = false;
  bool backward = false;  // else only what a forward pass needs
  DType type = DType::F32;
  int64_t first_layer = 0;  // lowest adapted layer; layers below it keep nothing
  int64_t layers = 0;
  KeptLayers kept;  // of those from first_layer on
};

struct Activations {
  std::vector<BlockActivations> blocks;  // per layer from first_layer; what is not kept is shared
  std::vector<Keep> keep;                // per layer from first_layer
  // x_in and x_mid of each layer from first_layer, then x_out of the last: 2 n + 1. One matrix
  // throughout in a forward-only plan.
  std::vector<Matrix> residual;
  Matrix dx;
  BlockScratch scratch;
  Matrix t;
  size_t shared_at = 0;  // from this mark on nothing is in use between forward and backward
};

// Lays everything out in `arena`. lora_rank of each group comes from the weights.
Activations plan_activations(Arena& arena, const ActivationDims& dims,
                             const std::vector<BlockWeights>& blocks);

// Rows [first, first + tokens) of everything.
BlockActivations rows_of(const BlockActivations& a, int64_t first, int64_t tokens);
BlockScratch rows_of(const BlockScratch& s, int64_t first, int64_t tokens);

}  // namespace lorashard
