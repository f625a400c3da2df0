// Inside of load_config: from text to settings with locations. Used by configs/*.cpp only.
#pragma once

#include <google/protobuf/descriptor.h>

#include <string>
#include <vector>

#include "configs/config.h"

namespace lorashard {

// Throws all problems ("WHERE: what") as one Error, status 2; returns if there are none.
void throw_problems(const std::vector<std::string>& problems);

// Parses `text` into config.run and records where each setting stands. `config.file` names it.
void parse_config_text(const std::string& text, Config& config);

// Applies the overrides of load_config in order.
void apply_overrides(const std::vector<std::string>& overrides, Config& config);

// "there is no setting "rnak" in lora, did you mean "rank"?": the nearest name of `block`, or the
// block that has such a setting, or the names that `block` knows.
std::string unknown_setting(const google::protobuf::Descriptor& block, const std::string& name);

// Whether `field` is a list of key and value in which each key stands once, such as rank_pattern.
bool is_pattern_list(const google::protobuf::FieldDescriptor& field);

// "is "COSIN", expected CONSTANT, LINEAR or COSINE": what is right for the type of `field`.
std::string wrong_value(const google::protobuf::FieldDescriptor& field, const std::string& value);

}  // namespace lorashard
