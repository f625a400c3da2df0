// The optimizer step: one all-reduce of the flat gradient with the step's message behind it, then
// clipping by global norm and AdamW on the flat buffers. Every rank does the same arithmetic on the
// same values, so replicas stay identical. Values are Factors', all else is TrainingBuffers';
// nothing is allocated here.
#pragma once

#include <cstdint>

#include "parallel/collectives.h"
#include "trainer/model/factors.h"
#include "trainer/run/training_buffers.h"

namespace lorashard {

// What a step's all-reduce gives: sums over the world, equal on all ranks.
struct StepSums : StepMessage {
  double gradient_squares = 0;  // sum of squares of the all-reduced gradient
  int64_t terms = 0;            // that the loss is the mean of: `unmasked`, or what the caller says
};

// gradients = 0: before the step's first micro-batch.
void clear_gradients(Stream& stream, TrainingBuffers& buffers);

// The one collective of a step: all-reduces gradients and messages over the world. `totals` (on the
// stream's device, or null) are this rank's, the first `sent` doubles of them: the loss alone but
// for pairs. The only place of a step where the host waits for the device.
StepSums reduce_step(Stream& stream, TrainingBuffers& buffers, Communicator& world,
                     const StepMessage& mine, const LossTotals* totals = nullptr, int64_t sent = 1);

struct OptimizerSettings {
  float beta1, beta2, epsilon, weight_decay;
  double max_grad_norm;       // 0: no clipping
  double loraplus_ratio = 1;  // the learning rate of B over that of A
};

// Norm of the mean gradient (the all-reduced one over the terms), before clipping.
double gradient_norm(const StepSums& sum);

// Clips as torch.nn.utils.clip_grad_norm_ and updates the factors, A with `learning_rate`. `step`
// counts from 1. What is derived from the values is for Model::factors_changed() to form anew.
void apply_step(Stream& stream, Factors& factors, TrainingBuffers& buffers,
                const OptimizerSettings& settings, double learning_rate, int64_t step,
                int64_t terms, double norm);

// Compares a digest of each module's factors and moments over the ranks, and of each trained
// tensor's. Error (status 3, the same on all ranks) naming module and ranks if any differ.
// Collective.
void check_replicas(const Factors& factors, const TrainingBuffers& buffers, Communicator& world);

}  // namespace lorashard
