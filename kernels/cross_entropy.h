// The local parts of vocabulary-parallel cross entropy (Shoeybi et al. 2019, section 3). Rows are
// unmasked tokens, columns this rank's slice [first, first + V) of the vocabulary.
#pragma once

#include "kernels/stream.h"
#include "kernels/tensor.h"

namespace lorashard {

// stats(R,3) F32: the row's maximum, the sum of exp(logit - maximum), and the label's logit where
// the label lies in this slice, else 0. logits(R,V): F32 or BF16.
void cross_entropy_stats(Stream& stream, Matrix stats, ConstMatrix logits, const int32_t* labels,
                         int64_t first);

// logits(R,V) = factor * (exp(logit - lse[r]) - [column is the label]): the gradient overwrites the
// logits. lse: R values F32, log-sum-exp over the whole vocabulary. row_factors, unless null: R
// further factors, one a row.
void cross_entropy_gradient(Stream& stream, Matrix logits, const float* lse, const int32_t* labels,
                            int64_t first, float factor, const float* row_factors = nullptr);

// Joins the ranks' statistics (ranks*R, 3), rank after rank: lse gets R values. A row's loss is lse
// - label's logit, formed in double: row_losses(R), unless null, gets it, and *loss, unless null,
// grows by the sum in row order. All pointers are to memory of the stream's device.
void cross_entropy_combine(Stream& stream, float* lse, double* loss, ConstMatrix stats, int ranks,
                           double* row_losses = nullptr);

}  // namespace lorashard
