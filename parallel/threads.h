// Ranks as threads of one process, for tests of layouts without mpirun.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "parallel/collectives.h"

namespace lorashard {

// Runs body(communicator) on `ranks` threads, each a rank of one world. If a rank throws, the
// others leave their collectives with an exception too, and the first exception is rethrown here.
void run_thread_ranks(int ranks, const std::function<void(Communicator&)>& body);

}  // namespace lorashard
