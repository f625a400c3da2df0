// What a base is, for people.
#pragma once

#include <string>
#include <vector>

#include "checkpoint/base_model.h"

namespace lorashard {

// Opens the Hugging Face directory or base shard set `path`, verifies every digest (and that every
// weight is finite), and describes it line by line: kind, architecture and its settings,
// tensors, weights, bytes, dtypes, digest. Collective.
std::vector<std::string> inspect_base(const std::string& path, Communicator& world);

}  // namespace lorashard
