#include "trainer/layers.h"

#include <algorithm>

#include "kernels/profile.h"

namespace lorashard {
namespace {

// Places of a layer in Activations. Layers below the first adapted one share the first's place and
// work in place on its input.
struct Place {
  size_t block, x_in, x_mid, x_out;
};
Place place_of(const LayerStack& stack, int64_t layer) {
  const auto i = size_t(std::max<int64_t>(layer - stack.first_layer, 0));
  if (layer < stack.first_layer) return {i, 2 * i, 2 * i, 2 * i};
  return {i, 2 * i, 2 * i + 1, 2 * i + 2};
}

void begin_sum(const LayerStack& stack, LayerPart& part, const std::string& label) {
  part.sum = stack.tensor.all_reduce_sum_begin(part.context.linear.stream,
                                               part.context.scratch.delta, label.c_str());
}

void wait_sum(const LayerStack& stack, LayerPart& part) {
  stack.tensor.all_reduce_sum_wait(part.context.linear.stream, part.sum);
}

}  // namespace

void forward_layers(const LayerStack& stack, std::span<LayerPart> parts,
                    std::vector<KvCache>* caches) {
  const auto rows = [&](size_t i, const LayerPart& p) {
    return stack.activations.residual[i].row_range(p.first_row, p.tokens);
  };
  const auto layers = int64_t(stack.blocks.size());
  for (int64_t l = 0; l < layers; ++l) {
    const BlockWeights& w = stack.blocks[size_t(l)];
    const BlockLabels& labels = stack.labels[size_t(l)];
    const Place at = place_of(stack, l), below = place_of(stack, std::max<int64_t>(l - 1, 0));
    const ProfileSpan span("layer", labels.forward.c_str());
    for (LayerPart& p : parts) {
      const BlockActivations acts =
          rows_of(stack.activations.blocks[at.block], p.first_row, p.tokens);
      ConstMatrix x = rows(at.x_in, p);
      ResidualAdd before;
      if (l > 0) {  // the end of the layer below
        wait_sum(stack, p);
        x = rows(below.x_mid, p);
        before = residual_add(p.context, stack.blocks[size_t(l - 1)].down, rows(below.x_out, p));
      }
      attention_half_forward(p.context, w, x, before, acts,
                             caches ? &(*caches)[size_t(l)] : nullptr);
      begin_sum(stack, p, labels.attention_forward);
    }
    for (LayerPart& p : parts) {
      wait_sum(stack, p);
      mlp_half_forward(p.context, w, rows(at.x_in, p),
                       residual_add(p.context, w.o, rows(at.x_mid, p)),
                       rows_of(stack.activations.blocks[at.block], p.first_row, p.tokens));
      begin_sum(stack, p, labels.mlp_forward);
    }
  }
  const Place top = place_of(stack, layers - 1);
  for (LayerPart& p : parts) {
    wait_sum(stack, p);
    add_to_residual(p.context, stack.blocks.back().down, rows(top.x_out, p), rows(top.x_mid, p));
  }
}

void backward_layers(const LayerStack& stack, std::span<LayerPart> parts) {
  const Activations& a = stack.activations;
  const auto rows = [&](size_t i, const LayerPart& p) {
    return a.residual[i].row_range(p.first_row, p.tokens);
  };
  const auto dx = [&](const LayerPart& p) { return a.dx.row_range(p.first_row, p.tokens); };
  const auto layers = int64_t(stack.blocks.size());
  // The end of layer l's attention half comes where layer l - 1 begins.
  const auto finish_layer = [&](int64_t l, LayerPart& p) {
    if (l >= layers) return;
    const Place at = place_of(stack, l);
    wait_sum(stack, p);
    add_to_gradient(p.context, dx(p), rows(at.x_in, p),
                    rows_of(a.blocks[at.block], p.first_row, p.tokens).rstd_in,
                    stack.blocks[size_t(l)].input_norm);
  };
  for (int64_t l = layers - 1; l >= stack.first_layer; --l) {
    const BlockWeights& w = stack.blocks[size_t(l)];
    const BlockLabels& labels = stack.labels[size_t(l)];
    const Place at = place_of(stack, l);
    const bool lowest = l == stack.first_layer;
    const ProfileSpan span("layer", labels.backward.c_str());
    bool deeper = true;
    for (LayerPart& p : parts) {
      finish_layer(l + 1, p);
      const BlockActivations acts = rows_of(a.blocks[at.block], p.first_row, p.tokens);
      block_recompute(p.context, w, rows(at.x_in, p), rows(at.x_mid, p), acts, a.keep[at.block]);
      deeper = mlp_half_backward(p.context, w, rows(at.x_mid, p), dx(p), acts, lowest);
      if (deeper) begin_sum(stack, p, labels.mlp_backward);
    }
    if (!deeper) return;
    for (LayerPart& p : parts) {
      const BlockActivations acts = rows_of(a.blocks[at.block], p.first_row, p.tokens);
      wait_sum(stack, p);
      add_to_gradient(p.context, dx(p), rows(at.x_mid, p), acts.rstd_mid, w.post_norm);
      deeper = attention_half_backward(p.context, w, rows(at.x_in, p), dx(p), acts, lowest);
      if (deeper) begin_sum(stack, p, labels.attention_backward);
    }
    if (!deeper) return;
  }
}

}  // namespace lorashard
