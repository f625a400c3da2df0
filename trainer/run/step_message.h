// What the ranks send each other in a step besides gradients: floats behind the gradients, so that
// one all-reduce carries both. Each rank encodes its own; their sum decodes to the world's.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/preference.h"

namespace lorashard {

// Of a tensor-parallel group, which computes the same loss on every rank, only one rank counts loss
// and tokens.
struct StepMessage {
  LossTotals totals = {};    // decoded only: encode() leaves them to the device
  int64_t unmasked = 0;      // tokens that count in the loss
  int64_t tokens = 0;        // input tokens
  bool interrupted = false;  // SIGINT arrived
  bool terminated = false;   // SIGTERM arrived
  bool left = false;         // micro-batches are missing, because of the signal
  bool slow = false;         // long enough to look for signals within the next step
  double rss_mib = 0;        // peak of this rank; decoded: of the largest

  // Length of the message in a world of this size.
  static int64_t floats(int world_size);
  // Double i of the totals goes to floats 2 i and 2 i + 1, the two of split_double, so that nothing
  // is lost to fp32. Counts are exact over up to 4096 ranks. The totals are zero.
  std::vector<float> encode(int rank, int world_size) const;
  static StepMessage decode(std::span<const float> sum);
};

}  // namespace lorashard
