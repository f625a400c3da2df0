#include "trainer/cost/pricing.h"

#include <algorithm>
#include <string_view>

namespace lorashard {
namespace {

// The purpose of a kernel from the spans around it. GEMMs with a factor count as LoRA's in both
// directions, but not where they are only computed again.
std::string part_of(std::string_view path) {
  const auto inside = [&](std::string_view span) {
    return ("/" + std::string(path) + "/").find("/" + std::string(span) + "/") != std::string::npos;
  };
  for (const char* part : {"optimizer", "embedding", "loss", "recompute", "lora"})
    if (inside(part)) return part;
  return path.ends_with("backward") ? "backward" : "forward";
}

// "layer.3.mlp.forward" -> "mlp.forward"
std::string purpose_of(const std::string& label) {
  constexpr std::string_view kLayer = "layer.";
  if (!label.starts_with(kLayer)) return label;
  return label.substr(label.find('.', kLayer.size()) + 1);
}

// The entry that `same` recognises, or a new one.
template <class T, class Same>
T& entry(std::vector<T>& costs, Same same, T fresh) {
  const auto found = std::find_if(costs.begin(), costs.end(), same);
  return found != costs.end() ? *found : costs.emplace_back(std::move(fresh));
}

}  // namespace

double kernel_seconds(const KernelCall& call, const Machine& machine) {
  const Efficiency& e = machine.efficiency;
  const double share = call.kernel == "attention_forward"    ? e.attention_forward
                       : call.kernel == "attention_backward" ? e.attention_backward
                                                             : e.gemms;
  const double rate = call.work.type == DType::BF16 ? machine.bf16_flops : machine.f32_flops;
  const double arithmetic = call.work.flops > 0 ? call.work.flops / (rate * share) : 0;
  const double traffic = call.work.bytes / (machine.memory_bandwidth * e.memory);
  return std::max({arithmetic, traffic, machine.call_seconds});
}

void add_kernels(std::vector<KernelCost>& costs, const std::vector<KernelCall>& calls,
                 const Machine& machine, int64_t times) {
  for (const KernelCall& call : calls) {
    const std::string part = part_of(call.part);
    KernelCost& cost = entry(
        costs, [&](const KernelCost& k) { return k.kernel == call.kernel && k.part == part; },
        KernelCost{.kernel = call.kernel, .part = part});
    cost.calls += times;
    cost.flops += double(times) * call.work.flops;
    cost.bytes += double(times) * call.work.bytes;
    cost.seconds += double(times) * kernel_seconds(call, machine);
  }
}

void add_reductions(std::vector<ReductionCost>& costs,
                    const std::vector<RecordedReduction>& reductions, const Machine& machine,
                    int64_t times) {
  for (const RecordedReduction& r : reductions) {
    const std::string label = purpose_of(r.label);
    ReductionCost& cost = entry(
        costs, [&](const ReductionCost& c) { return c.label == label; },
        ReductionCost{.label = label, .ranks = r.ranks});
    const AllReduceCost one = all_reduce_cost(machine, r.ranks, r.bytes);
    cost.calls += times;
    cost.payload += double(times) * r.bytes;
    cost.wire_inside += double(times) * one.wire_inside;
    cost.wire_between += double(times) * one.wire_between;
    cost.seconds += double(times) * one.seconds;
    const double exposed = r.overlapped ? 1 - machine.efficiency.overlap : 1;
    cost.exposed_seconds += double(times) * one.seconds * exposed;
  }
}

}  // namespace lorashard
