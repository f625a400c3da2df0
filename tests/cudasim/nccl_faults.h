// Faults that tests ask the simulated NCCL for.
#pragma once

#include <nccl.h>

namespace cudasim {

// The next all-reduce that this thread enqueues never ends, and its communicator reports `error`
// from then on.
void fail_next_all_reduce(ncclResult_t error);
// The next ncclCommInitRankConfig of this thread reports `error`.
void fail_next_init(ncclResult_t error);
// Communicators that were made and neither destroyed nor aborted, in this process.
int live_communicators();

}  // namespace cudasim
