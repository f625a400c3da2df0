#include "trainer/cost/machine.h"

#include <algorithm>

namespace lorashard {
namespace {

constexpr double kGiga = 1e9, kTera = 1e12, kMib = 1 << 20;

// Shares that public measurements of the libraries used here make likely on Hopper and Blackwell:
// cuBLASLt's large bf16 GEMMs run at 60-75 % of the dense peak within the power limit; cuDNN's
// and FlashAttention-3's causal attention with head size 128 at about 55 % forward and 45 %
// backward (Shah et al. 2024, figures 5 and 6); streaming kernels at 85-90 % of the memory's rate;
// NCCL's large all-reduces at 75-80 % of NVLink's rate. Of those that run beside GEMMs four fifths
// are hidden: both take from the same memory and multiprocessors.
constexpr Efficiency kAssumed{.gemms = 0.70,
                              .attention_forward = 0.55,
                              .attention_backward = 0.45,
                              .memory = 0.85,
                              .link = 0.78,
                              .overlap = 0.8};

// Driver context, code of the libraries, NCCL's buffers, cuBLASLt's workspace.
constexpr double kDriverBytes = 2048 * kMib;
constexpr double kLaunch = 3e-6;  // back-to-back kernels of one stream

Machine h100() {
  Machine m;
  m.name = "h100-sxm";
  // NVIDIA H100 data sheet, SXM column; tensor rates there are with sparsity, twice the dense ones.
  m.f32_flops = 67 * kTera;
  m.bf16_flops = 1979 * kTera / 2;
  m.fp8_flops = 3958 * kTera / 2;
  m.memory_bandwidth = 3350 * kGiga;
  m.memory_bytes = 80 * kGiga;
  m.reserved_bytes = kDriverBytes;
  m.devices_per_node = 8;
  m.inside = {900 * kGiga / 2, 2e-6};  // NVLink 4: 900 GB/s both ways together
  m.between = {50 * kGiga, 5e-6};      // one 400 Gb/s adapter a device (DGX H100 data sheet)
  m.call_seconds = kLaunch;
  m.efficiency = kAssumed;
  return m;
}

Machine h200() {
  Machine m = h100();  // the same processor
  m.name = "h200-sxm";
  // NVIDIA H200 data sheet, SXM column.
  m.memory_bandwidth = 4800 * kGiga;
  m.memory_bytes = 141 * kGiga;
  return m;
}

Machine b200() {
  Machine m = h100();
  m.name = "b200";
  // NVIDIA DGX B200 data sheet, an eighth of the node: FP8 72 PFLOPS with sparsity, 1,440 GB,
  // 64 TB/s; HGX B200: BF16 36 PFLOPS with sparsity, FP32 600 TFLOPS; NVLink 5: 14.4 TB/s both
  // ways together.
  m.f32_flops = 75 * kTera;
  m.bf16_flops = 2250 * kTera;
  m.fp8_flops = 4500 * kTera;
  m.memory_bandwidth = 8000 * kGiga;
  m.memory_bytes = 180 * kGiga;
  m.inside = {1800 * kGiga / 2, 2e-6};
  return m;
}

}  // namespace

const std::vector<Machine>& known_machines() {
  static const std::vector<Machine> machines{h100(), h200(), b200()};
  return machines;
}

const Machine* find_machine(const std::string& name) {
  const auto& all = known_machines();
  const auto found =
      std::find_if(all.begin(), all.end(), [&](const Machine& m) { return m.name == name; });
  return found == all.end() ? nullptr : &*found;
}

AllReduceCost all_reduce_cost(const Machine& machine, int64_t ranks, double bytes) {
  AllReduceCost cost;
  if (ranks <= 1) return cost;
  const int64_t local = std::min<int64_t>(ranks, machine.devices_per_node);
  const int64_t nodes = (ranks + local - 1) / local;
  const auto ring = [&](int64_t members, double payload, const Link& link, double& wire) {
    if (members <= 1) return;
    wire = 2 * double(members - 1) / double(members) * payload;
    cost.seconds +=
        2 * double(members - 1) * link.latency + wire / (link.bandwidth * machine.efficiency.link);
  };
  ring(local, bytes, machine.inside, cost.wire_inside);
  ring(nodes, bytes / double(local), machine.between, cost.wire_between);
  return cost;
}

}  // namespace lorashard
