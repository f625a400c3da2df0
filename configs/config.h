// The settings of one run: read from protobuf text format (configs/run_config.proto), overridden
// from the command line, checked once, and const from then on.
//
// Errors are Error with status 2. All problems found are reported together, one a line:
// "FILE:LINE:COLUMN: what is wrong, and what would be right" (1-based, columns in bytes), or
// "--set PATH: …" where the value came from an override.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "configs/run_config.pb.h"

namespace lorashard {

// Which settings must be there: model.path always; data.train and output.dir to train; data.eval to
// evaluate.
enum class ConfigUse { Train, Eval, Other };

struct Config {
  RunConfig run;     // every setting present, defaults filled in
  std::string file;  // where it was read from
  // Setting ("lora.rank", "lora.target_modules[1]", "lora.rank_pattern.q_proj") or block ("lora")
  // -> where it was set, for error messages.
  std::map<std::string, std::string> locations;

  // Where `path` was set, or else its block, or else the start of the file.
  std::string where(const std::string& path) const;
};

// Reads `path`, applies `overrides` in order, fills in defaults, checks ranges and combinations.
//
// An override is "PATH=VALUE", for example
//   lora.rank=16                  train.seed=7         schedule.kind=COSINE
//   output.dir=runs/a             strings need no quotes; in quotes, text-format escapes hold
//   lora.target_modules=q_proj,v_proj   or ["q_proj", "v_proj"]; empty: none
//   lora.rank_pattern.q_proj=4    one entry, in its place if the file has the key, else the last;
//                                 lora.rank_pattern=q_proj:4,k_proj:2 replaces all, in this order
// It replaces what the file says. A list may be overridden several times: the first replaces the
// file's, further ones add to it. Overriding any other setting twice is an error, as in the file.
Config load_config(const std::string& path, const std::vector<std::string>& overrides = {},
                   ConfigUse use = ConfigUse::Train);

// That parallel.tensor divides `world_size` ranks.
void check_tensor_groups(const Config& config, int64_t world_size);
// check_tensor_groups, and that train.global_batch_size is a multiple of train.micro_batch_size x
// (world_size / parallel.tensor).
void check_world(const Config& config, int64_t world_size);

// Every setting with its value, in text format; load_config reads it back to the same settings.
std::string to_textproto(const RunConfig& run);

// Formats whose lines are pairs, chosen and rejected, and formats that no tokenizer reads.
bool is_preference(RunConfig::Data::Format format);
bool has_token_ids(RunConfig::Data::Format format);

// Whether target_modules or exclude_modules is one regular expression (see the schema) and not a
// list of names.
bool is_module_regex(const google::protobuf::RepeatedPtrField<std::string>& modules);

}  // namespace lorashard
