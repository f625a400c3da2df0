#include "trainer/cost/cost_model.h"

#include <algorithm>
#include <cassert>

namespace lorashard {
namespace {

// The rope tables, and per token ids, positions, offsets, labels, rows and dropout's keys.
double workspace_bytes(const TrainingJob& job) {
  const double table = double(job.sequence) * double(job.model.head_dim) * 4;
  return (job.model.window_rope ? 2 : 1) * table +
         double(job.micro_batch * job.sequence) * (5 * 4 + 8);
}

// Bytes that Auto may fill with activations. Where nothing is left, the least that can run is
// priced, and StepCost says that it does not fit.
double activation_budget(const TrainingJob& job, const Machine& machine, int tp_rank) {
  if (job.activation_budget > 0 || job.recompute != Recompute::Auto) return job.activation_budget;
  // All that is not activations.
  TrainingJob least = job;
  least.recompute = Recompute::Full;
  RecordedRank rank(least, machine.backend, tp_rank, 0);
  rank.micro_batch(rank.full_micro_batch());
  return std::max(1.0, machine.memory_bytes - machine.reserved_bytes - rank.base_bytes() -
                           rank.factor_bytes() - workspace_bytes(job) - rank.scratch_bytes());
}

}  // namespace

RankCost rank_cost(const TrainingJob& job, const Machine& machine, int tp_rank) {
  assert(!job.modules.empty() && job.global_batch % (job.micro_batch * job.data) == 0);
  RecordedRank rank(job, machine.backend, tp_rank,
                    size_t(activation_budget(job, machine, tp_rank)));
  RankCost cost;
  const int64_t micro_batches = job.global_batch / (job.micro_batch * job.data);
  rank.micro_batch(rank.full_micro_batch());
  add_kernels(cost.kernels, rank.take_kernels(), machine, micro_batches);
  rank.optimizer_step();
  add_kernels(cost.kernels, rank.take_kernels(), machine, 1);
  add_reductions(cost.reductions, rank.tensor_reductions(), machine, micro_batches);
  add_reductions(cost.reductions, rank.world_reductions(), machine, 1);
  for (const KernelCost& k : cost.kernels) {
    cost.flops += k.flops;
    cost.kernel_seconds += k.seconds;
  }
  for (const ReductionCost& r : cost.reductions) cost.exposed_seconds += r.exposed_seconds;

  const Model& model = rank.model();
  cost.adapted_from = model.first_layer();
  cost.recomputed_mlps = model.recomputed_mlps();
  cost.recomputed_layers = model.recomputed_layers();
  MemoryCost& m = cost.memory;
  m.base = rank.base_bytes();
  m.factors = rank.factor_bytes();
  m.activations = double(model.layer_bytes());
  m.loss = double(model.activation_bytes() - model.layer_bytes());
  m.workspaces = workspace_bytes(job) + rank.scratch_bytes();
  m.reserved = machine.reserved_bytes;
  return cost;
}

StepCost step_cost(const TrainingJob& job, const Machine& machine) {
  StepCost step;
  for (int tp_rank = 0; tp_rank < job.tensor; ++tp_rank) {
    RankCost cost = rank_cost(job, machine, tp_rank);
    for (const KernelCost& k : cost.kernels) {
      if (k.part != "recompute") step.model_flops += job.data * k.flops;
    }
    if (cost.memory.total() > step.largest.total()) step.largest = cost.memory;
    if (cost.seconds() > step.seconds) {
      step.seconds = cost.seconds();
      step.slowest = std::move(cost);
    }
  }
  step.tokens = double(job.global_batch * job.sequence);
  step.fits = step.largest.total() <= machine.memory_bytes;
  return step;
}

}  // namespace lorashard
