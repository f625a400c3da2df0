// A mixture of experts: which experts a token goes to, and its rows on the way there and back.
//
// T tokens choose k of E experts each. A choice is the number c = t * k + j of a token's j-th
// choice; R = T k of them. For GEMMs choices stand sorted by expert ("places" p of 0 to R - 1),
// those of one expert in the order of c, so that each expert's rows are neighbours and nothing is
// padded. Integers are I32. Every result is the same for any number of threads.
#pragma once

#include "kernels/stream.h"
#include "kernels/tensor.h"

namespace lorashard {

// Of one micro-batch and layer.
struct Routing {
  Matrix probabilities;  // (T,E) F32: softmax of the router's logits
  Matrix weights;        // (T,k) F32: of each choice's expert output
  Matrix experts;        // (T,k) I32: each choice's expert; most probable first
  Matrix order;          // (T,k) I32: of each place, the choice that stands there
  Matrix places;         // (T,k) I32: of each choice, its place
  Matrix offsets;        // (1,E+1) I32: expert e has places offsets[e] to offsets[e+1] - 1
};

// All of `routing` from logits(T,E) F32, which may be its probabilities. Of equally probable
// experts the lower number comes first. A weight is the expert's probability, divided by the sum of
// the token's k where `normalized` (Qwen3-MoE's norm_topk_prob; transformers, Qwen3MoeTopKRouter).
void route_forward(Stream& stream, const Routing& routing, ConstMatrix logits, bool normalized);

// d_logits(T,E) = the gradient through route_forward from d_weights(T,k); the choice itself has
// none. F32.
void route_backward(Stream& stream, Matrix d_logits, ConstMatrix d_weights, const Routing& routing,
                    bool normalized);

// y(R,N)[place of c] = x(T,N)[token of c]. Same type.
void gather_choices(Stream& stream, Matrix y, ConstMatrix x, const Routing& routing);
// y(T,N)[t] = the sum over t's choices c of x(R,N)[place of c] [+ y], in their order, in fp32.
// F32 or BF16.
void sum_choices(Stream& stream, Matrix y, ConstMatrix x, const Routing& routing, bool accumulate);

// y(R,N)[p] = weight of the choice at p * x(R,N)[p]. F32 or BF16; y may be x.
void weigh_choices(Stream& stream, Matrix y, ConstMatrix x, const Routing& routing);
// d_weights(T,k) F32 of the choice at p = <dy[p], x[p]> (unless it is empty), and
// dx(R,N)[p] = its weight * dy[p]. dx may be dy.
void weigh_choices_backward(Stream& stream, Matrix d_weights, Matrix dx, ConstMatrix dy,
                            ConstMatrix x, const Routing& routing);

}  // namespace lorashard
