// Adds up what the kernels and sums of a training step cost on one rank.
#pragma once

#include <string>
#include <vector>

#include "kernels/tensor.h"
#include "trainer/cost/machine.h"

namespace lorashard {

// All calls of one kernel for one purpose.
struct KernelCost {
  std::string kernel;  // as in profiles: "matmul_nt", "attention_forward", …
  std::string part;    // what for: "embedding", "forward", "recompute", "backward", "lora",
                       // "loss", "optimizer"
  int64_t calls = 0;
  double flops = 0;  // of products and attention; other kernels are bound by memory
  double bytes = 0;  // to and from memory, each operand once
  double seconds = 0;
};

// All sums of one purpose.
struct ReductionCost {
  std::string label;  // "embedding", "attention.forward", "mlp.forward", "mlp.backward",
                      // "attention.backward", "loss.statistics", "loss.head_backward",
                      // "lora_gradient"
  int64_t ranks = 1;  // in each sum
  int64_t calls = 0;
  double payload = 0;                        // bytes of this rank, as traces say
  double wire_inside = 0, wire_between = 0;  // bytes that this rank sends
  double seconds = 0;
  double exposed_seconds = 0;  // of these, not hidden behind products
};

class Tally {
 public:
  explicit Tally(const Machine& machine) : machine_(machine) {}

  // What follows is done `times` times for this purpose.
  void set_part(std::string part) { part_ = std::move(part); }
  const std::string& part() const { return part_; }
  void set_times(double times) { times_ = times; }

  // A product with 2 m n k flops on operands of these types; y is read too if `accumulate`.
  // `bf16`: on bf16 units.
  void product(const char* kernel, int64_t m, int64_t n, int64_t k, DType y, DType a, DType b,
               bool accumulate, bool bf16);
  void attention(const char* kernel, double flops, double bytes, bool bf16);
  // Any other kernel: bound by memory.
  void pass(const char* kernel, double bytes);
  void sum(const char* label, int64_t ranks, double bytes, bool overlaps = false);

  std::vector<KernelCost> kernels;
  std::vector<ReductionCost> reductions;

 private:
  void add(const char* kernel, double flops, double bytes, double flops_per_second);
  const Machine& machine_;
  std::string part_;
  double times_ = 1;
};

}  // namespace lorashard
