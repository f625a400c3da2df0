// The file of `train --profile`: what each rank did when, in Chrome's trace format (about:tracing,
// Perfetto).
#pragma once

#include <string>
#include <vector>

#include "kernels/profile.h"
#include "parallel/collectives.h"

namespace lorashard {

// One file at `path` for all ranks, one process of the trace a rank: rank 0 gathers the spans and
// writes them. On the CPU kernels carry their flops, collectives their bytes, and both a rate. With
// the CUDA `backend` the host's spans say when work was enqueued, not when the device did it: the
// processes are named so, kernels have the category "enqueue", and there are no rates.
// Error (status 3, on every rank): the file cannot be written. Collective.
void write_profile(const std::string& path, const std::vector<ProfileEvent>& events,
                   Backend backend, Communicator& world);

}  // namespace lorashard
