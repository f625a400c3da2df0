// Machines as the cost model sees them: peak rates as the maker states them, and the shares of them
// that programs reach.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/record.h"

namespace lorashard {

// Bytes per second that one device sends while it receives as much, and seconds for one message.
struct Link {
  double bandwidth = 0, latency = 0;
};

// Shares of the peaks that kernels reach. For GPUs these are assumptions until someone measures
// (each stands beside its machine); PREDICTIONS.md says what follows from them.
struct Efficiency {
  double gemms = 1;                                      // of the flops, GEMMs
  double attention_forward = 1, attention_backward = 1;  // of the flops
  double memory = 1;                                     // of the memory bandwidth
  double link = 1;                                       // of the links' bandwidth
  double overlap = 0;  // of the layers' all-reduces, hidden where TrainingJob::overlap takes effect
};

// One device (a GPU, or the share of a CPU that one rank has) and how many of them are joined how.
struct Machine {
  std::string name;
  Backend backend = Backend::CUDA;  // whose kernels run on it
  double f32_flops = 0;             // dense, per second
  double bf16_flops = 0;            // dense, fp32 accumulation
  double fp8_flops = 0;             // dense; 0: none. No kernel here uses it: for comparisons
  double memory_bandwidth = 0;
  double memory_bytes = 0;
  double reserved_bytes = 0;  // of these, what driver, libraries and the program itself take
  int devices_per_node = 1;
  Link inside, between;     // the links of one device in its node and to other nodes
  double call_seconds = 0;  // a kernel takes at least this
  Efficiency efficiency;
};

// "h100-sxm", "h200-sxm", "b200": nodes of 8.
const std::vector<Machine>& known_machines();
// Of that name, or null.
const Machine* find_machine(const std::string& name);

// What an all-reduce costs one of its ranks.
struct AllReduceCost {
  double wire_inside = 0, wire_between = 0;  // bytes that it sends, within its node and beyond
  double seconds = 0;
};

// Over `ranks` neighbouring devices, of `bytes` bytes each. Ring (Patarasuk and Yuan 2009):
// reduce-scatter and all-gather send (p - 1) / p of the payload each, in p - 1 messages. Over
// several nodes: reduce-scatter within the node, a ring between the nodes for each device's piece,
// all-gather within the node.
AllReduceCost all_reduce_cost(const Machine& machine, int64_t ranks, double bytes);

}  // namespace lorashard
