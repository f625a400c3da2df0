#include "trainer/cost/tally.h"

#include <algorithm>
#include <cstring>

namespace lorashard {

// Roofline (Williams et al. 2009): a kernel takes the longer of its arithmetic and its traffic.
void Tally::add(const char* kernel, double flops, double bytes, double flops_per_second) {
  auto found = std::find_if(kernels.begin(), kernels.end(), [&](const KernelCost& k) {
    return k.kernel == kernel && k.part == part_;
  });
  if (found == kernels.end()) {
    kernels.push_back({kernel, part_});
    found = kernels.end() - 1;
  }
  const double arithmetic = flops > 0 ? flops / flops_per_second : 0;
  const double traffic = bytes / (machine_.memory_bandwidth * machine_.efficiency.memory);
  found->calls += int64_t(times_);
  found->flops += times_ * flops;
  found->bytes += times_ * bytes;
  found->seconds += times_ * std::max({arithmetic, traffic, machine_.call_seconds});
}

void Tally::product(const char* kernel, int64_t m, int64_t n, int64_t k, DType y, DType a, DType b,
                    bool accumulate, bool bf16) {
  const double mn = double(m) * double(n), mk = double(m) * double(k), nk = double(n) * double(k);
  const double bytes = mn * double(size_of(y)) * (accumulate ? 2 : 1) + mk * double(size_of(a)) +
                       nk * double(size_of(b));
  add(kernel, 2 * mn * double(k), bytes,
      (bf16 ? machine_.bf16_flops : machine_.f32_flops) * machine_.efficiency.products);
}

void Tally::attention(const char* kernel, double flops, double bytes, bool bf16) {
  const bool backward = std::strcmp(kernel, "attention_backward") == 0;
  add(kernel, flops, bytes,
      (bf16 ? machine_.bf16_flops : machine_.f32_flops) *
          (backward ? machine_.efficiency.attention_backward
                    : machine_.efficiency.attention_forward));
}

void Tally::pass(const char* kernel, double bytes) { add(kernel, 0, bytes, 1); }

void Tally::sum(const char* label, int64_t ranks, double bytes, bool overlaps) {
  auto found = std::find_if(reductions.begin(), reductions.end(),
                            [&](const ReductionCost& r) { return r.label == label; });
  if (found == reductions.end()) {
    reductions.push_back({.label = label, .ranks = ranks});
    found = reductions.end() - 1;
  }
  const SumCost cost = sum_cost(machine_, ranks, bytes);
  found->calls += int64_t(times_);
  found->payload += times_ * bytes;
  found->wire_inside += times_ * cost.wire_inside;
  found->wire_between += times_ * cost.wire_between;
  found->seconds += times_ * cost.seconds;
  found->exposed_seconds +=
      times_ * cost.seconds * (overlaps ? 1 - machine_.efficiency.overlap : 1);
}

}  // namespace lorashard
