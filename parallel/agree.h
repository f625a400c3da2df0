// Errors that every rank learns of, so that one is reported and none hangs.
#pragma once

#include <functional>

#include "parallel/collectives.h"

namespace lorashard {

// Runs body on every rank; if it throws an Error on any of them, every rank throws the Error of the
// lowest such rank, whose place is added where hosts differ in what they meet. For the phases of
// start-up, which all ranks go through together. Collective.
// Errors so thrown have on_all_ranks set: one rank prints, and the job ends in order.
void run_agreed(Communicator& world, const std::function<void()>& body);

// Runs body on rank 0 alone, which touches the files of the run; an Error in it is every rank's, as
// in run_agreed. Collective.
void on_first_rank(Communicator& world, const std::function<void()>& body);

}  // namespace lorashard
