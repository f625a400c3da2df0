// The communicator whose all-reduces run on CUDA devices, over NCCL.
#pragma once

#include <chrono>
#include <memory>

#include "parallel/collectives.h"

namespace lorashard {

// Joins the ranks of `host`, each with the device of its own `stream`. All-reduces of device
// memory go through NCCL, on a stream of their own that events order with `stream`; everything
// else, and all-reduces of host memory (a CPU stream), through `host`. split() gives communicators
// that share that stream: their all-reduces run in the order in which they were begun. Collective.
// `host` and `stream` outlive it.
//
// Errors, asynchronous ones included: status 3, naming the rank, the call and the tensor. They
// surface where the host next waits for the device or begins an all-reduce; the NCCL communicators
// are aborted by then, and the caller ends the job.
std::unique_ptr<Communicator> make_nccl_communicator(Communicator& host, Stream& stream);

// How long an all-reduce may take before its peers count as lost, and how long joining may take.
// For tests; the defaults are 30 and 5 minutes.
void set_nccl_patience(std::chrono::milliseconds reduction, std::chrono::milliseconds join);

}  // namespace lorashard
