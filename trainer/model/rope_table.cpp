#include <cmath>
#include <numbers>
#include <vector>

#include "trainer/model/model.h"

namespace lorashard {
namespace {

// Llama 3.1's rescaling: long wavelengths are divided by `factor`, short ones kept, those between
// blended (transformers, modeling_rope_utils._compute_llama3_parameters).
double llama3_frequency(double frequency, const RopeConfig& rope) {
  const double wavelength = 2 * std::numbers::pi / frequency;
  const double context = double(rope.original_max_position_embeddings);
  if (wavelength > context / rope.low_freq_factor) return frequency / rope.factor;
  if (wavelength < context / rope.high_freq_factor) return frequency;
  const double smooth = (context / wavelength - rope.low_freq_factor) /
                        (rope.high_freq_factor - rope.low_freq_factor);
  return (1 - smooth) * frequency / rope.factor + smooth * frequency;
}

}  // namespace

void fill_rope_table(Matrix table, const RopeConfig& rope, int64_t head_dim) {
  const int64_t half = head_dim / 2;
  std::vector<float> frequency(static_cast<size_t>(half));
  for (int64_t i = 0; i < half; ++i) {
    double f = 1.0 / std::pow(rope.theta, double(2 * i) / double(head_dim));
    if (rope.kind == RopeConfig::Kind::Linear) f /= rope.factor;
    if (rope.kind == RopeConfig::Kind::Llama3) f = llama3_frequency(double(float(f)), rope);
    frequency[size_t(i)] = float(f);
  }
  for (int64_t p = 0; p < table.rows; ++p) {
    auto* row = reinterpret_cast<float*>(table.at(p, 0));
    for (int64_t i = 0; i < half; ++i) {
      const float angle = float(p) * frequency[size_t(i)];
      row[i] = float(std::cos(double(angle)));
      row[half + i] = float(std::sin(double(angle)));
    }
  }
}

}  // namespace lorashard
