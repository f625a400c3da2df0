// The stack of layers over the parts of a micro-batch. Two parts are in flight where that pays:
// while the ranks all-reduce what one part adds to the residual, the other part computes.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "parallel/collectives.h"
#include "trainer/model/activations.h"
#include "trainer/model/block.h"

namespace lorashard {

// Rows [first_row, first_row + tokens) of a micro-batch: whole sequences.
struct LayerPart {
  int64_t first_row = 0, tokens = 0;
  BlockContext context;     // of these rows alone
  ReduceTicket reduce = 0;  // of context.scratch.delta
};

// Names of a sublayer's forward and backward passes, in traces of collectives and in profiles.
struct SublayerLabels {
  std::string forward, backward;  // "layer.3.mlp.forward"
};

// The sublayers of all layers, two a layer: sublayer i is layer i / 2's attention or MLP.
struct LayerStack {
  Communicator& tensor;
  const std::vector<BlockWeights>& blocks;
  const std::vector<SublayerLabels>& labels;  // by sublayer
  const Activations& activations;
  int64_t first_layer;  // lowest layer of which something is trained
  bool input_gradient;  // that of the whole stack's input is wanted; then first_layer is 0
};

// From activations.residual[0] to the last residual. `caches`: one of each layer, or null.
void forward_layers(const LayerStack& stack, std::span<LayerPart> parts,
                    std::vector<KvCache>* caches);

// From activations.dx, the gradient of the last residual, down to the lowest trained layer.
// activations.dx is left undefined, or the gradient of the stack's input where that is wanted.
void backward_layers(const LayerStack& stack, std::span<LayerPart> parts);

}  // namespace lorashard
