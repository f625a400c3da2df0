// What a training step costs before anything is allocated: flops, bytes, time and memory of each
// rank, on this machine or a described one. Cheap: sizes only, no weights.
//
// The step is recorded, not described again here (trainer/cost/record_step.h): a kernel or a
// collective that training gains is priced without a change in this folder.
//
// Time: each kernel by its roofline at the machine's stated efficiencies, each all-reduce by the
// ring's formula, one after the other but for what the machine overlaps. Not modelled: reading
// data, start-up, evaluation, checkpoints, the host's own work, waiting for slower ranks.
#pragma once

#include <vector>

#include "trainer/cost/machine.h"
#include "trainer/cost/pricing.h"

namespace lorashard {

// Bytes of one rank at the largest moment of a step.
struct MemoryCost {
  double base = 0;         // its shard of the frozen weights, as stored
  double factors = 0;      // values, gradients, two moments, fp32
  double activations = 0;  // as Model lays them out
  double loss = 0;         // what unmasked rows and a chunk of logits need beyond that
  double workspaces = 0;   // rope table, staging, operands that GEMMs convert
  double reserved = 0;     // Machine::reserved_bytes
  double total() const { return base + factors + activations + loss + workspaces + reserved; }
};

// One optimizer step of one rank.
struct RankCost {
  std::vector<KernelCost> kernels;
  std::vector<ReductionCost> reductions;
  MemoryCost memory;
  int64_t adapted_from = 0;       // lowest adapted layer
  int64_t recomputed_layers = 0;  // of those from there on
  int64_t recomputed_mlps = 0;    // of the others: gate and up alone
  double flops = 0;               // of GEMMs and attention
  double kernel_seconds = 0;
  double exposed_seconds = 0;  // of all-reduces, not hidden
  double seconds() const { return kernel_seconds + exposed_seconds; }
};

struct StepCost {
  RankCost slowest;    // the rank with the longest time
  MemoryCost largest;  // the rank with the most memory
  bool fits = true;    // largest.total() within Machine::memory_bytes
  double seconds = 0;
  double tokens = 0;       // of all ranks
  double model_flops = 0;  // of all ranks, without recomputation
  double tokens_per_second() const { return tokens / seconds; }
};

// REQUIRES: job.modules is not empty; job.global_batch is a multiple of micro_batch * data.
RankCost rank_cost(const TrainingJob& job, const Machine& machine, int tp_rank);
StepCost step_cost(const TrainingJob& job, const Machine& machine);

}  // namespace lorashard
