// Which modules a run adapts, and under which settings of the factors.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "checkpoint/adapter.h"
#include "checkpoint/base_model.h"
#include "configs/config.h"

namespace lorashard {

// config.target_modules names the modules as PEFT finds them (name_targets).
struct LoraPlan {
  AdapterConfig config;
  std::vector<LinearModule> modules;
  std::optional<Adapter> start;              // factors of lora.init_from
  std::vector<std::string> default_targets;  // where the config leaves target_modules out
  std::vector<std::string> notes;  // settings without effect, what is unknown of init_from
};

// With lora.init_from, what the config does not set is taken from that adapter, and what it sets
// must agree. Errors: status 2 at the setting.
LoraPlan plan_lora(const Config& config, const BaseModel& base, const std::string& base_digest);

// The settings, with those of the factors as the plan has them where they come from the adapter of
// lora.init_from.
RunConfig resolved_config(const RunConfig& run, const LoraPlan& plan);

}  // namespace lorashard
