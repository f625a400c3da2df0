// The norms over the hidden size that a family uses: RMS norm, or layer norm with its bias. Norms
// of query and key heads are RMS norms and are called where they are (block.cpp).
#pragma once

#include "checkpoint/model_config.h"
#include "kernels/residual.h"
#include "kernels/stream.h"

namespace lorashard {

// One norm's parameters (1,H); bias is empty but for NormKind::Layer.
struct NormWeights {
  ConstMatrix gain, bias;
};

// Columns of what a norm's forward pass keeps a row: rstd, or mean and rstd.
inline int64_t norm_stats_columns(const ModelConfig& config) {
  return config.norm == NormKind::Layer ? 2 : 1;
}

// y(T,H) = the norm of x(T,H), or of before.sum, which is formed on the way. stats (T,
// norm_stats_columns()) F32 is kept for backward and may be empty.
void norm_forward(Stream& stream, const ModelConfig& config, Matrix y, Matrix stats, ConstMatrix x,
                  const NormWeights& w, const ResidualAdd& before = {});
// dx = (or += when accumulate) the gradient for x. dx may alias dy.
void norm_backward(Stream& stream, const ModelConfig& config, Matrix dx, ConstMatrix dy,
                   ConstMatrix x, ConstMatrix stats, const NormWeights& w, bool accumulate);

}  // namespace lorashard
