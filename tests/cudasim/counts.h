// What a program asked of the simulated runtime, for tests of what it must not ask in a step.
#pragma once

#include <atomic>
#include <cstdint>

namespace cudasim {

struct Counts {
  std::atomic<int64_t> allocations = 0;  // cudaMalloc, cudaMallocHost
  std::atomic<int64_t> releases = 0;     // cudaFree, cudaFreeHost: both wait for the device
  // Calls that waited for unfinished work, or asked for its end: of a stream, an event, the device.
  std::atomic<int64_t> waits = 0;
  // Copies from or to pageable memory: the driver waits, or copies first.
  std::atomic<int64_t> pageable_copies = 0;
};

// Of this process, since it began.
Counts& counts();

}  // namespace cudasim
