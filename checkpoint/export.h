// Exports: base + scaling * B A as a Hugging Face model, the adapter alone, or merged base shards.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/adapter.h"
#include "checkpoint/base_model.h"

namespace lorashard {

// Largest rounding error of one merged matrix: stored value against the fp32 sum.
struct MergeError {
  std::string name;
  double max_abs = 0;       // max |stored - exact|
  double max_relative = 0;  // max_abs over the matrix's largest magnitude
};

struct ExportOptions {
  uint64_t max_shard_bytes = 5'000'000'000;                     // Hugging Face counts 5GB as 5e9
  std::optional<DType> dtype;                                   // as stored unless said
  std::function<void(uint64_t done, uint64_t total)> progress;  // bytes
};

// Streams tensor by tensor (memory bounded by the largest tensor): merges in fp32 and rounds once.
// Writes model.safetensors or shards with model.safetensors.index.json, config.json (its dtype set
// to the written one), and all companion files into the new directory `out`, which appears whole or
// not at all. REQUIRES: the adapter belongs to the base (checked by digest when it carries one).
std::vector<MergeError> export_merged(const BaseModel& base, const Adapter& adapter,
                                      const std::string& out, const ExportOptions& options);

}  // namespace lorashard
