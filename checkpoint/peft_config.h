// adapter_config.json as PEFT 0.21 writes and reads it (peft/tuners/lora/config.py).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/adapter.h"

namespace lorashard {

struct PeftConfig {
  AdapterConfig config;  // base_digest stays empty
  // Only these layers; empty means all. layers_pattern names what stands before the layer's number.
  std::vector<int64_t> layers_to_transform;
  std::vector<std::string> layers_pattern;
};

// Errors (status 2) name `source` and the setting: what is malformed, and every setting that
// changes the mathematics and is not supported. A key that is not known passes only with a neutral
// value: null, false or empty.
PeftConfig parse_peft_config(const std::string& text, const std::string& source);

// The text of adapter_config.json.
std::string format_peft_config(const AdapterConfig& config);

// The modules that the settings choose, as match_targets, narrowed to layers_to_transform.
std::vector<LinearModule> match_peft_targets(const PeftConfig& peft,
                                             const std::vector<LinearModule>& modules,
                                             const std::string& where,
                                             const std::vector<std::string>& others = {});

}  // namespace lorashard
