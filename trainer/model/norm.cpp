#include "trainer/model/norm.h"

#include "kernels/layer_norm.h"
#include "kernels/rms_norm.h"

namespace lorashard {

void norm_forward(Stream& stream, const ModelConfig& config, Matrix y, Matrix stats, ConstMatrix x,
                  const NormWeights& w, const ResidualAdd& before) {
  if (config.norm == NormKind::Layer)
    layer_norm_forward(stream, y, stats, x, w.gain, w.bias, config.norm_eps, before);
  else
    rms_norm_forward(stream, y, stats, x, w.gain, config.norm_eps, config.norm_gain_offset, before);
}

void norm_backward(Stream& stream, const ModelConfig& config, Matrix dx, ConstMatrix dy,
                   ConstMatrix x, ConstMatrix stats, const NormWeights& w, bool accumulate) {
  if (config.norm == NormKind::Layer)
    layer_norm_backward(stream, dx, dy, x, stats, w.gain, accumulate);
  else
    rms_norm_backward(stream, dx, dy, x, stats, w.gain, config.norm_gain_offset, accumulate);
}

}  // namespace lorashard
