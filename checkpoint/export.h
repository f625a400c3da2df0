// Exports: base + scaling * B A as a Hugging Face model, the adapter alone, or merged base shards.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
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
  // BaseModel::digest() of the base. An adapter that carries another one is refused; empty leaves
  // the check out.
  std::string base_digest;
};

// Streams block of rows by block of rows: merges in fp32 and rounds once, to nearest even.
// Writes model.safetensors, or shards of at most max_shard_bytes (one tensor at least) with
// model.safetensors.index.json, config.json (its dtype set to the written one), and all companion
// files into the new directory `out`, which appears whole or not at all. Errors: status 2 if `out`
// exists, the adapter carries another base digest, or does not fit the base; status 3 for a full
// disk or a value that the written type cannot hold, by tensor name. Returns one entry for each
// adapted matrix, in the order of the base.
std::vector<MergeError> export_merged(const BaseModel& base, const Adapter& adapter,
                                      const std::string& out, const ExportOptions& options);

// Writes into the directory `dir` what export_merged would, of weights that come from elsewhere:
// `stream` calls its second argument with all values of a tensor in fp32, whole rows at a time and
// in order. `metadata` goes into the header of each safetensors file.
using EmitRows = std::function<void(ConstMatrix rows)>;
void write_model(const BaseModel& base, const fs::path& dir, const ExportOptions& options,
                 const std::map<std::string, std::string>& metadata,
                 const std::function<void(const BaseModel::Tensor&, const EmitRows&)>& stream);

// The merged model as an immutable base shard set for `ranks` (write_base_shards). Collective, but
// for one rank: `world` must be alone.
std::vector<MergeError> export_shards(const BaseModel& base, const Adapter& adapter, int ranks,
                                      const std::string& out, const ExportOptions& options,
                                      Communicator& world);

// The adapter alone, in PEFT's layout (fp32), as the new directory `out`, which appears whole or
// not at all.
void export_peft(const Adapter& adapter, const std::string& out);

}  // namespace lorashard
