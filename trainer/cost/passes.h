// What a rank computes and sends in a training step, kernel by kernel, in the order of
// trainer/model.cpp, layers.cpp, block.cpp, linear.cpp, loss.cpp and optimizer.cpp. A change there
// is a change here: tests/trainer/cost_model_test.cpp compares calls, flops and bytes with what a
// run did.
#pragma once

#include <vector>

#include "trainer/cost/shapes.h"
#include "trainer/cost/tally.h"

namespace lorashard {

// The sequences of a micro-batch.
struct BatchShape {
  std::vector<int64_t> lengths;
  int64_t counted = 0;  // labels
  int64_t tokens() const;
};

// (query, key) pairs of causal attention over one sequence; window as in kernels/attention.h.
double attention_pairs(int64_t length, int64_t window);

// The parts that the layers work on in turns, so that one's sums run beside the other's work: two
// if the job overlaps and there are ranks and sequences enough, else the whole.
std::vector<BatchShape> batch_parts(const TrainingJob& job, const BatchShape& batch);

// Forward and backward of one micro-batch.
void tally_micro_batch(Tally& tally, const TrainingJob& job, const RankShape& shape,
                       KeptLayers kept, const BatchShape& batch);

// What comes once in a step: clearing, the one sum of the gradients, clipping, AdamW.
void tally_optimizer(Tally& tally, const TrainingJob& job, const RankShape& shape);

}  // namespace lorashard
