// What recorded kernels and all-reduces cost on a machine.
#pragma once

#include <string>
#include <vector>

#include "trainer/cost/machine.h"
#include "trainer/cost/record_step.h"

namespace lorashard {

// All calls of one kernel for one purpose.
struct KernelCost {
  std::string kernel;  // as in profiles: "matmul_nt", "attention_forward", …
  std::string part;    // what for: "embedding", "forward", "recompute", "backward", "lora",
                       // "loss", "optimizer"
  int64_t calls = 0;
  double flops = 0;  // of GEMMs and attention; other kernels are bound by memory
  double bytes = 0;  // to and from memory, each operand once
  double seconds = 0;
};

// All all-reduces of one purpose.
struct ReductionCost {
  std::string label;  // "embedding", "attention.forward", "mlp.forward", "mlp.backward",
                      // "attention.backward", "loss.statistics", "loss.head_backward",
                      // "lora_gradient"
  int64_t ranks = 1;  // in each
  int64_t calls = 0;
  double payload = 0;                        // bytes of this rank, as traces say
  double wire_inside = 0, wire_between = 0;  // bytes that this rank sends
  double seconds = 0;
  double exposed_seconds = 0;  // of these, not hidden behind kernels
};

// Seconds of one call. Roofline (Williams et al. 2009): the longer of its arithmetic, at the rate
// of the units that it runs on, and its traffic; a call takes at least Machine::call_seconds.
double kernel_seconds(const KernelCall& call, const Machine& machine);

// Each adds to the entry of its kernel and purpose, as if done `times` times.
void add_kernels(std::vector<KernelCost>& costs, const std::vector<KernelCall>& calls,
                 const Machine& machine, int64_t times);
void add_reductions(std::vector<ReductionCost>& costs,
                    const std::vector<RecordedReduction>& reductions, const Machine& machine,
                    int64_t times);

}  // namespace lorashard
