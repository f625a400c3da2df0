// adapter_config.json as PEFT 0.21 writes and reads it (peft/tuners/lora/config.py).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/adapter.h"

namespace lorashard {

// Errors (status 2) name `source` and the setting: what is malformed, and every setting that
// changes the mathematics and is not supported. A key that is not known passes only with a neutral
// value: null, false or empty. base_digest stays empty.
AdapterConfig parse_peft_config(const std::string& text, const std::string& source);

// The text of adapter_config.json.
std::string format_peft_config(const AdapterConfig& config);

}  // namespace lorashard
