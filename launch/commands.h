// The subcommands that do not train: each returns the exit status or throws Error.
#pragma once

#include <string>
#include <vector>

#include "trainer/run/compute.h"

namespace lorashard {

struct ShardOptions {
  std::string model, quantize, out;
  int tensor = 1;
};
int shard_command(const ShardOptions& options, const Ranks& ranks);

struct ExportCommandOptions {
  std::string model, adapter, format = "merged", out, max_shard_size = "5GB", dtype, names = "peft";
  int tensor = 0;  // of --format shards; 0: that of the base, or 1
};
int export_command(const ExportCommandOptions& options, const Ranks& ranks);

int inspect_command(const std::string& path, const Ranks& ranks);

// `file` is a path, or "-" for standard input.
int tokenize_command(const std::string& model, const std::string& file, bool decode);

// "5GB" and the like, as Hugging Face reads it: KB, MB, GB are powers of 1000, KiB, MiB, GiB of
// 1024; a plain number is bytes. Error (status 2) naming `where`.
uint64_t parse_size(const std::string& text, const std::string& where);

}  // namespace lorashard
