#include "trainer/cost/cost_model.h"

#include <algorithm>
#include <cassert>
#include <cmath>

#include "trainer/step_message.h"

namespace lorashard {
namespace {

double factor_bytes(const TrainingJob& job, const RankShape& shape) {
  return 4.0 * 4 * double(shape.factor_elements) + 4.0 * StepMessage::floats(job.tensor * job.data);
}

// The rope table, and per token ids, positions, offsets, labels, rows and dropout's keys. Kernels'
// scratch (widened tiles of 4 MiB, attention's blocks) is the machine's reserve.
double workspace_bytes(const TrainingJob& job, const RankShape& shape) {
  const double table = double(job.sequence) * double(job.model.head_dim) * 4;
  return table + double(shape.dims.tokens) * (5 * 4 + 8);
}

}  // namespace

RankCost rank_cost(const TrainingJob& job, const Machine& machine, int tensor_rank) {
  assert(!job.adapted.empty() && job.global_batch % (job.micro_batch * job.data) == 0);
  const RankShape shape = rank_shape(job, tensor_rank);
  RankCost cost;
  MemoryCost& m = cost.memory;
  m.base = shape.base_bytes;
  m.factors = factor_bytes(job, shape);
  m.workspaces = workspace_bytes(job, shape);
  m.reserved = machine.reserved_bytes;
  // Where nothing is left, the least that can run is priced, and StepCost says that it does not
  // fit.
  const double budget = job.activation_budget > 0 ? job.activation_budget
                                                  : std::max(1.0, machine.memory_bytes - m.total());
  cost.adapted_from = shape.dims.first_layer;
  const KeptLayers kept = kept_layers(shape, job.recompute, budget);
  cost.recomputed_mlps = kept.attention;
  cost.recomputed_layers = shape.dims.layers - cost.adapted_from - kept.all - kept.attention;
  const ArenaBytes arena = arena_bytes(shape, kept);
  m.activations = arena.activations;
  m.loss = arena.loss;

  BatchShape batch;
  batch.lengths.assign(size_t(job.micro_batch), job.sequence);
  batch.counted = std::llround(double(job.micro_batch * (job.sequence - 1)) * job.counted_share);
  Tally tally(machine);
  tally.set_times(double(job.global_batch / (job.micro_batch * job.data)));
  tally_micro_batch(tally, job, shape, kept, batch);
  tally.set_times(1);
  tally_optimizer(tally, job, shape);
  for (const KernelCost& k : tally.kernels) {
    cost.flops += k.flops;
    cost.kernel_seconds += k.seconds;
  }
  for (const ReductionCost& r : tally.reductions) cost.exposed_seconds += r.exposed_seconds;
  cost.kernels = std::move(tally.kernels);
  cost.reductions = std::move(tally.reductions);
  return cost;
}

StepCost step_cost(const TrainingJob& job, const Machine& machine) {
  StepCost step;
  for (int rank = 0; rank < job.tensor; ++rank) {
    RankCost cost = rank_cost(job, machine, rank);
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
