// This computer as a Machine: its rates measured, in about a second.
#pragma once

#include "kernels/stream.h"
#include "trainer/cost/machine.h"

namespace lorashard {

// The share of the host that one of `host_ranks` ranks with stream.threads() threads has. GEMM
// rates are measured with the stream's threads; the memory's with those of all ranks, and shared
// out. Noise of other programs makes it slower, never faster.
Machine measure_cpu(Stream& stream, int host_ranks);

}  // namespace lorashard
