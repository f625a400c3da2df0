// The communicator whose sums run on CUDA devices, over NCCL.
#pragma once

#include <chrono>
#include <memory>

#include "parallel/collectives.h"

namespace lorashard {

// Joins the ranks of `host`, each with the device of its own `stream`. Sums of device memory go
// through NCCL, on a stream of their own that events order with `stream`; everything else, and
// sums of host memory (a CPU stream), through `host`. split() gives communicators of the same kind,
// which share that stream: their sums run in the order in which they were begun. Collective. `host`
// and `stream` outlive it.
//
// Errors, asynchronous ones included: status 3, naming the rank, the call and the tensor. They
// surface where the host next waits for the device or begins a sum; the NCCL communicators are
// aborted by then, and the caller ends the job.
std::unique_ptr<Communicator> make_nccl_communicator(Communicator& host, Stream& stream);

// How long a sum may take before its peers count as lost, and how long joining may take.
// For tests; the defaults are 30 and 5 minutes.
void set_nccl_patience(std::chrono::milliseconds sum, std::chrono::milliseconds join);

}  // namespace lorashard
