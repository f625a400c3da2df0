// The parts of config.json that say how attention sees positions: rotary embeddings and sliding
// windows, as transformers' configuration classes read them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/config_settings.h"
#include "checkpoint/model_config.h"

namespace lorashard {

// How sliding windows are written in a family's config.json.
enum class Window : uint8_t {
  None,        // the family has none
  All,         // sliding_window, if not null, holds for every layer
  Flagged,     // use_sliding_window, sliding_window and max_window_layers, or layer_types
  FlaggedAll,  // use_sliding_window; then sliding_window holds for every layer
  Pattern,     // sliding_window; layer_types, or one full layer in sliding_window_pattern
};

// One rotary embedding for all layers. Older files say rope_theta and rope_scaling
// {type | rope_type, …}; newer ones rope_parameters {rope_type, rope_theta, …}. Where both stand
// they must mean the same. Keys that transformers does not read for the type are added to
// `unread`.
RopeConfig parse_rope(Settings& s, const std::string& source, double default_theta,
                      int64_t max_positions, std::vector<std::string>& unread);

// Two of them, as Gemma 3 has: of full layers and of layers with a sliding window. Older files say
// rope_theta and rope_scaling for the first, rope_local_base_freq for the second; newer ones
// rope_parameters {full_attention {…}, sliding_attention {…}}.
struct LayerRopes {
  RopeConfig full, sliding;
};
LayerRopes parse_layer_ropes(Settings& s, const std::string& source, double default_theta,
                             double default_local_theta, int64_t max_positions,
                             std::vector<std::string>& unread);

// 0 or the sliding window of each layer: a token sees itself and the window - 1 tokens before it.
std::vector<int64_t> parse_windows(Settings& s, Window window, int64_t default_window,
                                   int64_t layers);

}  // namespace lorashard
