// The stack of layers over the parts of a micro-batch. Two parts are in flight where that pays:
// while the ranks sum what one part adds to the residual, the other part computes.
#pragma once

#include <span>
#include <vector>

#include "parallel/collectives.h"
#include "trainer/activations.h"
#include "trainer/block.h"

namespace lorashard {

// Rows [first_row, first_row + tokens) of a micro-batch: whole sequences.
struct LayerPart {
  int64_t first_row = 0, tokens = 0;
  BlockContext context;  // of these rows alone
  SumTicket sum = 0;     // of context.scratch.delta
};

struct LayerStack {
  Communicator& tensor;
  const std::vector<BlockWeights>& blocks;
  const std::vector<BlockLabels>& labels;
  const Activations& activations;
  int64_t first_layer;  // lowest adapted layer
};

// From activations.residual[0] to the last residual. `caches`: one of each layer, or null.
void forward_layers(const LayerStack& stack, std::span<LayerPart> parts,
                    std::vector<KvCache>* caches);

// From activations.dx, the gradient of the last residual, down to the lowest adapted layer.
// activations.dx is left undefined.
void backward_layers(const LayerStack& stack, std::span<LayerPart> parts);

}  // namespace lorashard
