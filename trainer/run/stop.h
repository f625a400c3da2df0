// How the ranks agree to leave a step or an evaluation when a stop signal comes.
#pragma once

#include <functional>

#include "parallel/mesh.h"

namespace lorashard {

// SIGTERM or SIGINT if `stop_signal` gives one on any rank of this tensor-parallel group, whose
// ranks leave a step together; SIGTERM where both came; else 0. Collective over mesh.tensor: 16
// bytes of host memory are all-reduced.
int stop_signal_of_group(const Mesh& mesh, const std::function<int()>& stop_signal);

}  // namespace lorashard
