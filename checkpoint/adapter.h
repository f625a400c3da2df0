// LoRA adapters in PEFT's layout: adapter_config.json and adapter_model.safetensors.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
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
  // Parameters of no linear module, full names or suffixes (checkpoint/expert_names.h).
  std::vector<std::string> target_parameters = {};
  std::vector<std::string> exclude_modules;
  bool exclude_regex = false;  // PEFT: exclude_modules is a single string
  bool use_rslora = false;     // scale alpha / sqrt(r)
  // Regular expressions that match the end of a module's name, from a dot on. The first that
  // matches decides.
  std::vector<std::pair<std::string, int64_t>> rank_pattern;
  std::vector<std::pair<std::string, double>> alpha_pattern;
  std::string base_model;   // base_model_name_or_path
  std::string base_digest;  // ours: metadata "lorashard_base_digest" of adapter_model.safetensors,
                            // where PEFT does not look; empty in adapters made elsewhere

  bool operator==(const AdapterConfig&) const = default;
};

// The rank and alpha of one module: those of the first pattern that matches, else the common ones.
// Errors (status 2) name a pattern that is no regular expression.
int64_t module_rank(const AdapterConfig& config, const std::string& module);
double module_alpha(const AdapterConfig& config, const std::string& module);
// alpha / rank, or alpha / sqrt(rank) under use_rslora.
double lora_scaling(const AdapterConfig& config, int64_t rank, double alpha);

// What an adapter holds for one module, in fp32, row-major; or the moments of all that, or the
// shapes alone.
struct AdapterModule {
  std::string name;                         // "model.layers.0.self_attn.q_proj"
  int64_t rank, in_features, out_features;  // rank: rows of A, of all experts
  double alpha;                             // ΔW = scaling() B A
  std::vector<float> a = {}, b = {};        // the tensors of kAdapterTensors
  int64_t experts = 1;                      // a parameter of stacked experts (expert_names.h)
  int64_t lora_rank() const { return rank / experts; }  // of one expert
};

// The tensors that an adapter has for each module, in the order of files. What goes over tensors
// (files here, flat buffers in trainer/) goes over this list: a further kind of tensor is a line.
enum class AdapterTensorKind : uint8_t { LoraA, LoraB };  // indices of kAdapterTensors
struct AdapterTensorSpec {
  AdapterTensorKind kind;
  const char* name;  // in files: MODULE.name.weight
  int64_t AdapterModule::*rows;
  int64_t AdapterModule::*cols;
  std::vector<float> AdapterModule::*values;  // rows x cols
};
inline constexpr AdapterTensorSpec kAdapterTensors[] = {
    {AdapterTensorKind::LoraA, "lora_A", &AdapterModule::rank, &AdapterModule::in_features,
     &AdapterModule::a},
    {AdapterTensorKind::LoraB, "lora_B", &AdapterModule::out_features, &AdapterModule::rank,
     &AdapterModule::b}};

// Elements of all tensors of a module, from its shapes.
int64_t adapter_elements(const AdapterModule& m);

struct Adapter {
  AdapterConfig config;
  std::vector<AdapterModule> modules;
  double scaling(const AdapterModule& m) const;
};

// Reads and checks DIR: every setting that changes the mathematics and is not supported is refused
// by name; every factor has its partner, fits the base (module names and shapes of `modules`), and
// is finite; target_modules matches exactly the modules that have factors. F32, BF16 and F16 are
// read. Modules come in the order of `modules`. Errors (status 2) read "FILE: what" or
// "FILE: TENSOR: what".
Adapter read_adapter(const fs::path& dir, const std::vector<LinearModule>& modules);

// Those of `modules` that the adapter has factors for.
std::vector<LinearModule> modules_with_factors(const Adapter& adapter,
                                               const std::vector<LinearModule>& modules);

// Writes adapter_config.json and adapter_model.safetensors (fp32) into the existing directory
// `dir`, as PEFT reads them. "all-linear" is written as the names that it stood for. Returns file
// name -> SHA-256.
std::map<std::string, std::string> write_adapter(const fs::path& dir, const Adapter& adapter);

// The modules that PEFT would adapt, in the order of `modules`: `targets` are names or dotted
// suffixes, or one regex (Python's syntax) that must match the whole name, or "all-linear" alone.
// `excluded` has these forms too, but "all-linear". `others` are the model's modules that LoRA here
// does not adapt (other_modules()); PEFT refuses them too, but for embedding and head. `where`
// names the setting in errors (status 2): no match; a target that matches one of `others`; a broken
// regex.
std::vector<LinearModule> match_targets(const std::vector<LinearModule>& modules,
                                        const std::vector<std::string>& targets, bool regex,
                                        const std::vector<std::string>& excluded,
                                        const std::string& where, bool exclude_regex = false,
                                        const std::vector<std::string>& others = {});

// The modules and parameters that the settings choose, in the order of `modules`: match_targets,
// and those of target_parameters, of which exclude_modules leaves none out (as in PEFT). Errors as
// match_targets, and where nothing is chosen.
std::vector<LinearModule> match_adapted(const AdapterConfig& config,
                                        const std::vector<LinearModule>& modules,
                                        const std::string& where,
                                        const std::vector<std::string>& others = {});

// Does what PEFT 0.21 does to a mixture of experts' settings, and nothing for other models: targets
// named as before transformers 5 (gate_proj and up_proj together, down_proj, gate, "all-linear")
// are the parameters that the experts' and the router's weights are now. gate_up_proj stands for
// two modules and gets twice the rank and alpha. `where` names the setting in errors (status 2).
void convert_expert_targets(AdapterConfig& config, const std::vector<LinearModule>& modules,
                            const std::vector<std::string>& others, const std::string& where);

// What in `config` has no effect, a line each: an entry of target_modules or exclude_modules that
// names no module of the model, a key of rank_pattern or alpha_pattern that decides for none of
// `chosen`.
std::vector<std::string> idle_selectors(const AdapterConfig& config,
                                        const std::vector<LinearModule>& modules,
                                        const std::vector<std::string>& others,
                                        const std::vector<LinearModule>& chosen);

// Writes target_modules as the names of the modules `chosen` of `modules`, by which any version of
// PEFT finds these and no others: the last part of a name where all modules of that name are
// chosen, else the whole name; exclude_modules becomes empty. A list that says this already stays
// as it is.
void name_targets(AdapterConfig& config, const std::vector<LinearModule>& modules,
                  const std::vector<LinearModule>& chosen);

// The modules that the factors in DIR/adapter_model.safetensors belong to, with the sizes that they
// have: stands in for the base where there is none. Layer and split are not filled in.
std::vector<LinearModule> modules_of_factors(const fs::path& dir);

// What the adapter in `dir` is, line by line, for `inspect`. Checks all that can be checked without
// its base. Errors as read_adapter.
std::vector<std::string> inspect_adapter(const fs::path& dir);

}  // namespace lorashard
