// LoRA adapters in PEFT's layout: adapter_config.json and adapter_model.safetensors.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/file_io.h"
#include "checkpoint/model_config.h"

namespace lorashard {

// What adapter_config.json says, under PEFT's names.
struct AdapterConfig {
  int64_t rank = 8;
  double alpha = 16;
  double dropout = 0;
  std::vector<std::string> target_modules;  // names or suffixes; one regex if target_regex
  bool target_regex = false;                // PEFT: target_modules is a single string
  std::vector<std::string> exclude_modules;
  bool use_rslora = false;  // scale alpha / sqrt(r)
  std::map<std::string, int64_t> rank_pattern;
  std::map<std::string, double> alpha_pattern;
  std::string base_model;   // base_model_name_or_path
  std::string base_digest;  // ours: "lorashard_base_digest"; empty in adapters made elsewhere
};

// One module's factors in fp32, row-major: a (rank, in), b (out, rank).
struct AdapterModule {
  std::string name;  // "model.layers.0.self_attn.q_proj"
  int64_t rank, in_features, out_features;
  double alpha;  // ΔW = scaling() B A
  std::vector<float> a, b;
};

struct Adapter {
  AdapterConfig config;
  std::vector<AdapterModule> modules;
  double scaling(const AdapterModule& m) const;
};

// Reads and checks DIR: every setting that changes the mathematics and is not supported is refused
// by name; every factor has its partner, fits the base (module names and shapes of `modules`), and
// is finite. Errors (status 2) read "FILE: what" or "FILE: TENSOR: what".
Adapter read_adapter(const fs::path& dir, const std::vector<LinearModule>& modules);

// Writes adapter_config.json and adapter_model.safetensors (fp32) into the existing directory
// `dir`, as PEFT reads them. Returns file name -> SHA-256.
std::map<std::string, std::string> write_adapter(const fs::path& dir, const Adapter& adapter);

// The modules that PEFT would adapt: `targets` are names or dotted suffixes, or one regex that must
// match the whole name, or "all-linear". `excluded` likewise. Errors: none matches, by name.
std::vector<LinearModule> match_targets(const std::vector<LinearModule>& modules,
                                        const std::vector<std::string>& targets, bool regex,
                                        const std::vector<std::string>& excluded,
                                        const std::string& where);

}  // namespace lorashard
