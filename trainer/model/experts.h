// The MLP of a mixture-of-experts layer on one tensor-parallel rank:
//
//   y_t = sum over t's k choices c of down_e(weight_c act(gate_e(x_t)) * up_e(x_t)),  e of choice c
//
// with the choices and their weights from the router, softmax(W_r x) (kernels/routing.h). down_e is
// linear, so that its input may carry the weight. Every rank has all experts and its features of
// each: y is partial, and the all-reduce that a dense MLP needs makes it whole. The router is
// replicated and its input the same bits on every rank, and so the choice is. The gradient of a
// weight is partial, as the rank's features are; what follows from it is linear, so that its part
// of dx is summed by the all-reduce of dx, and the router's factors by the optimizer step's.
//
// LoRA on the experts, as PEFT's target_parameters means it, adds scaling B_e A_e to W_e: here
// u = x A_e^T and y += scaling u B_e^T on the rows of expert e. Rows lie expert by expert, and each
// expert's GEMMs are of its rows: nothing is padded, and an expert without rows costs nothing.
#pragma once

#include <functional>

#include "kernels/routing.h"
#include "trainer/model/block.h"

namespace lorashard {

// The steps of the MLP sublayer, for block.cpp; x is c.scratch.norm. Of `acts`, gate and up hold
// this rank's (R,F) rows expert by expert, and u of the experts' groups (R,lora_rank).

// acts.routing and the router's u.
void experts_route(const BlockContext& c, const BlockWeights& w, const BlockActivations& acts);
// acts.gate and acts.up. Needs the routing.
void experts_gate_up(const BlockContext& c, const BlockWeights& w, const BlockActivations& acts,
                     DownProjection down);
// y(T,H) = this rank's part of the output, from acts.gate and acts.up.
void experts_down(const BlockContext& c, const BlockWeights& w, Matrix y,
                  const BlockActivations& acts);

// What of a backward pass is needed: the gradient of the router's logits, and that of x.
struct ExpertsNeed {
  bool gate_up, router, x;
};
// Adds to the factors' gradients and, where need.x, c.scratch.delta(T,H) = this rank's part of the
// gradient of x. dy: of the output. `norm`: forms x in c.scratch.norm again, where it is needed.
// acts.gate and acts.up are overwritten.
void experts_backward(const BlockContext& c, const BlockWeights& w, ConstMatrix dy,
                      const BlockActivations& acts, const ExpertsNeed& need,
                      const std::function<void()>& norm);

}  // namespace lorashard
