// The optimizer step: one reduction of the flat gradient with the step's counters in its tail, then
// clipping by global norm and AdamW on the flat buffer. Every rank does the same arithmetic on the
// same sums, so replicas stay identical.
#pragma once

#include <cstdint>

#include "kernels/adamw.h"
#include "parallel/collectives.h"
#include "trainer/lora.h"

namespace lorashard {

// What one rank contributes to a step besides gradients. Of a tensor-parallel group, which computes
// the same loss on every rank, only one rank counts loss and tokens.
struct StepCounts {
  double loss_sum = 0;          // of the sums only: over counted labels
  int64_t counted = 0;          // labels
  int64_t tokens = 0;           // input tokens
  bool interrupted = false;     // SIGINT arrived
  bool terminated = false;      // SIGTERM arrived
  bool left = false;            // micro-batches are missing, because of the signal
  bool slow = false;            // long enough to look for signals within the next step
  double rss_mib = 0;           // peak of this rank
  double gradient_squares = 0;  // of the sums only: sum of squares of the summed gradient
};

// Floats behind the gradients in Factors: Factors::tail() must be this.
int64_t step_tail_floats(int world_size);

// The one collective of a step: sums gradients and counts over the world. Returns the sums, with
// the largest rank's rss. Loss and counts survive as pairs of floats, so that nothing is lost to
// fp32. `loss_sum` (one double on the stream's device, or null) is this rank's loss. The only place
// of a step where the host waits for the device.
StepCounts reduce_step(Stream& stream, Factors& factors, Communicator& world,
                       const StepCounts& mine, const double* loss_sum = nullptr);

struct OptimizerSettings {
  float beta1, beta2, epsilon, weight_decay;
  double max_grad_norm;  // 0: no clipping
};

// Norm of the mean gradient (the summed gradient over the counted labels), before clipping.
double gradient_norm(const StepCounts& sum);

// Clips as torch.nn.utils.clip_grad_norm_ and updates the factors. `step` counts from 1.
void apply_step(Stream& stream, Factors& factors, const OptimizerSettings& settings,
                double learning_rate, int64_t step, int64_t counted, double norm);

// Compares a digest of each module's factors and moments over the ranks. Error (status 3, the same
// on all ranks) naming module and ranks if any differ. Collective.
void check_replicas(const Factors& factors, Communicator& world);

}  // namespace lorashard
