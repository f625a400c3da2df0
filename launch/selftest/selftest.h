// `lorashard selftest`: what this build computes on this machine, against what it should.
#pragma once

#include "trainer/run/compute.h"

namespace lorashard {

// Every kernel on the CPU against its definition in double precision; with the CUDA backend and a
// device for each rank, the same calls on the device against the CPU's results; with several ranks
// all-reduces between them; on real devices timings beside the data sheet's rates. One line each on
// rank 0, with the largest error of all ranks; what was skipped is listed with the reason and
// counts as nothing else. Returns 0, or 3 if a check failed. Collective.
int self_test(const Ranks& ranks);

}  // namespace lorashard
