#include "trainer/model/layers.h"

#include <algorithm>

#include "kernels/profile.h"
#include "parallel/tensor_region.h"

namespace lorashard {
namespace {

Sublayer kind_of(int64_t i) { return Sublayer(i % 2); }

const BlockWeights& weights_of(const LayerStack& stack, int64_t i) {
  return stack.blocks[size_t(i / 2)];
}

// The input of sublayer i, or, one past the last, the output of the stack. Layers below the first
// adapted one keep nothing: they work in place on its input.
Matrix residual(const LayerStack& stack, int64_t i, const LayerPart& p) {
  const auto at = size_t(std::max<int64_t>(i - 2 * stack.first_layer, 0));
  return stack.activations.residual[at].row_range(p.first_row, p.tokens);
}

BlockActivations activations_of(const LayerStack& stack, int64_t i, const LayerPart& p) {
  const auto at = size_t(std::max<int64_t>(i / 2 - stack.first_layer, 0));
  return rows_of(stack.activations.blocks[at], p.first_row, p.tokens);
}

int64_t sublayers(const LayerStack& stack) { return 2 * int64_t(stack.blocks.size()); }

}  // namespace

void forward_layers(const LayerStack& stack, std::span<LayerPart> parts,
                    std::vector<KvCache>* caches) {
  const int64_t end = sublayers(stack);
  for (int64_t i = 0; i < end; ++i) {
    const std::string& label = stack.labels[size_t(i)].forward;
    const ProfileSpan span("layer", label.c_str());
    for (LayerPart& p : parts) {
      Stream& stream = p.context.linear.stream;
      ConstMatrix x = residual(stack, i, p);
      ResidualAdd before;
      if (i > 0) {  // what the sublayer before it adds
        leave_region_end(stack.tensor, stream, p.reduce);
        before = residual_add(p.context, weights_of(stack, i - 1), kind_of(i - 1),
                              activations_of(stack, i - 1, p), residual(stack, i, p));
        x = residual(stack, i - 1, p);
      }
      const BlockActivations acts = activations_of(stack, i, p);
      sublayer_forward(p.context, weights_of(stack, i), kind_of(i), x, before, acts,
                       caches ? &(*caches)[size_t(i / 2)] : nullptr);
      p.reduce = leave_region_begin(stack.tensor, stream,
                                    sublayer_output(p.context, kind_of(i), acts), label.c_str());
    }
  }
  for (LayerPart& p : parts) {
    leave_region_end(stack.tensor, p.context.linear.stream, p.reduce);
    add_to_residual(p.context, weights_of(stack, end - 1), kind_of(end - 1),
                    activations_of(stack, end - 1, p), residual(stack, end, p),
                    residual(stack, end - 1, p));
  }
}

void backward_layers(const LayerStack& stack, std::span<LayerPart> parts) {
  const int64_t end = sublayers(stack), first = 2 * stack.first_layer;
  // The end of sublayer i: its input's gradient, whole on every rank, goes into the residual's.
  const auto finish = [&](int64_t i, LayerPart& p) {
    enter_region_backward_end(stack.tensor, p.context.linear.stream, p.reduce);
    add_to_gradient(p.context, weights_of(stack, i), kind_of(i),
                    stack.activations.dx.row_range(p.first_row, p.tokens), residual(stack, i, p),
                    activations_of(stack, i, p));
  };
  for (int64_t i = end - 1; i >= first; --i) {
    const std::string& label = stack.labels[size_t(i)].backward;
    const ProfileSpan span("layer", label.c_str());
    bool deeper = true;
    for (LayerPart& p : parts) {
      Stream& stream = p.context.linear.stream;
      const Matrix dx = stack.activations.dx.row_range(p.first_row, p.tokens);
      if (i + 1 < end) finish(i + 1, p);
      const BlockActivations acts = activations_of(stack, i, p);
      if (kind_of(i) == Sublayer::Mlp) {
        block_recompute(p.context, weights_of(stack, i), residual(stack, i - 1, p),
                        residual(stack, i, p), acts,
                        stack.activations.keep[size_t(i / 2 - stack.first_layer)]);
      }
      deeper = sublayer_backward(p.context, weights_of(stack, i), kind_of(i), residual(stack, i, p),
                                 dx, acts, !stack.input_gradient && i / 2 == stack.first_layer);
      if (deeper) {
        p.reduce = enter_region_backward_begin(stack.tensor, stream, p.context.scratch.delta,
                                               label.c_str());
      }
    }
    if (!deeper) return;
  }
  if (first == end) return;
  for (LayerPart& p : parts) finish(first, p);
}

}  // namespace lorashard
