#include "launch/commands.h"

#include <fmt/format.h>

#include <cctype>
#include <charconv>
#include <cmath>
#include <fstream>
#include <iostream>

#include "checkpoint/adapter.h"
#include "checkpoint/adapter_base.h"
#include "checkpoint/base_model.h"
#include "checkpoint/expert_names.h"
#include "checkpoint/export.h"
#include "checkpoint/inspect.h"
#include "checkpoint/training_state.h"
#include "configs/error.h"
#include "parallel/agree.h"
#include "trainer/data/tokenizer/tokenizer.h"
#include "trainer/run/console.h"

namespace lorashard {

uint64_t parse_size(const std::string& text, const std::string& where) {
  static const std::pair<const char*, double> kUnits[] = {
      {"", 1},      {"B", 1},        {"KB", 1e3},     {"MB", 1e6},     {"GB", 1e9},
      {"TB", 1e12}, {"KIB", 0x1p10}, {"MIB", 0x1p20}, {"GIB", 0x1p30}, {"TIB", 0x1p40}};
  const char* const last = text.data() + text.size();
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), last, number, std::chars_format::fixed);
  std::string unit(end, last);
  for (char& c : unit) c = char(std::toupper(static_cast<unsigned char>(c)));
  for (const auto& [name, factor] : kUnits) {
    if (error != std::errc{} || unit != name) continue;
    const double bytes = number * factor;
    if (bytes >= 1 && bytes < 0x1p63) return uint64_t(bytes);
    fail_input(where, "'" + text + "' is " + (bytes < 1 ? "less than a byte" : "too large") +
                          "; give a size such as 5GB");
  }
  fail_input(where, "'" + text +
                        "' is no size; give a number with B, KB, MB, GB, TB, KiB, MiB, GiB or TiB, "
                        "for example 5GB or 1.5GiB");
}

int shard_command(const ShardOptions& options, const Ranks& ranks) {
  if (!options.quantize.empty()) {
    fail_input("--quantize", "'" + options.quantize +
                                 "' is not supported in this version; leave "
                                 "--quantize out to keep the stored types");
  }
  std::unique_ptr<BaseModel> base;
  run_agreed(ranks.world, [&] {
    if (options.tensor < 1) fail_input("--tp", "must be at least 1");
    base = BaseModel::open(options.model);
    if (options.tensor > base->config().heads) {
      fail_input("--tp", fmt::format("{} is more than the model's {} query heads", options.tensor,
                                     base->config().heads));
    }
  });
  write_base_shards(*base, options.tensor, options.out, ranks.world);
  Console(ranks.world.rank() == 0).line("base shard set written to " + options.out);
  return 0;
}

int export_command(const ExportCommandOptions& options, const Ranks& ranks) {
  if (options.names == "vllm" && options.format != "peft")
    fail_input("--names", "vllm names the tensors of an adapter; give --format peft with it");
  ExportOptions o;
  o.max_shard_bytes = parse_size(options.max_shard_size, "--max-shard-size");
  if (options.dtype == "bf16") o.dtype = DType::BF16;
  if (options.dtype == "fp16") o.dtype = DType::F16;
  if (options.dtype == "fp32") o.dtype = DType::F32;
  const auto base = BaseModel::open(options.model);
  const std::vector<LinearModule> modules = linear_modules(base->config());
  Adapter adapter = read_adapter(options.adapter, modules);
  o.base_digest = base->digest(ranks.world);
  check_adapter_base(adapter, options.adapter, o.base_digest);
  Console console(true);
  report_notes(console, base->notes());
  report_notes(console, adapter_base_notes(adapter, options.adapter, *base));
  if (options.format == "peft") {
    name_targets(adapter.config, modules, modules_with_factors(adapter, modules));
    export_peft(options.names == "vllm" ? for_vllm(adapter) : adapter, options.out);
    console.line("adapter written to " + options.out);
    return 0;
  }
  o.progress = [&](uint64_t done, uint64_t total) {
    console.progress(int64_t(done >> 20), int64_t(total >> 20), "MiB");
  };
  const int tensor = options.tensor > 0 ? options.tensor : 1;
  const std::vector<MergeError> errors =
      options.format == "shards"
          ? export_shards(*base, adapter, tensor, options.out, o, ranks.world)
          : export_merged(*base, adapter, options.out, o);
  for (const MergeError& e : errors) {
    console.line(fmt::format("{} largest rounding error {:.3e} ({:.2e} of its largest weight)",
                             e.name, e.max_abs, e.max_relative));
  }
  console.line(fmt::format("{} matrices merged, written to {}", errors.size(), options.out));
  return 0;
}

int inspect_command(const std::string& path, const Ranks& ranks) {
  Console console(true);
  for (const std::string& line : inspect(path, ranks.world)) console.line(line);
  return 0;
}

int tokenize_command(const std::string& model, const std::string& file, bool decode) {
  const auto tokenizer = Tokenizer::from_directory(model);
  std::ios::sync_with_stdio(false);
  if (file == "-") {
    tokenize_lines(*tokenizer, std::cin, std::cout, decode, "standard input");
  } else {
    std::ifstream in(file, std::ios::binary);
    if (!in || fs::is_directory(file)) fail_input(file, "cannot be read; give a file or -");
    tokenize_lines(*tokenizer, in, std::cout, decode, file);
  }
  std::cout.flush();
  if (!std::cout) fail_run("standard output", "cannot be written");
  return 0;
}

}  // namespace lorashard
