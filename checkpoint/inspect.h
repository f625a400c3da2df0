// What a path holds, for people.
#pragma once

#include <string>
#include <vector>

#include "parallel/collectives.h"

namespace lorashard {

// Lines that say what the model, base shard set, adapter or checkpoint at `path` is, after
// verifying every digest that it carries. Errors: status 2, naming what is damaged, or what was
// looked for.
std::vector<std::string> inspect(const std::string& path, Communicator& world);

}  // namespace lorashard
