// LoRA adapters in PEFT's layout: adapter_config.json and adapter_model.safetensors.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/file_io.h"
#include "checkpoint/model_config.h"

namespace lorashard {

class BaseModel;

// What adapter_config.json says, under PEFT's names.
struct AdapterConfig {
  int64_t rank = 8;
  double alpha = 16;
  double dropout = 0;
  std::vector<std::string> target_modules;  // names or suffixes; one regex if target_regex
  bool target_regex = false;                // PEFT: target_modules is a single string
  std::vector<std::string> exclude_modules;
  bool exclude_regex = false;  // PEFT: exclude_modules is a single string
  // Only these layers; empty means all. layers_pattern: expressions for what stands before the
  // layer's number in a module's name; empty means the first number counts.
  std::vector<int64_t> layers_to_transform;
  std::vector<std::string> layers_pattern;
  // Names' ends of modules that are trained themselves, beside the factors.
  std::vector<std::string> modules_to_save;
  // Rows of embedding or head that are trained themselves: the end of a module's name to token ids.
  // "" stands for the embedding, where PEFT has a plain list.
  std::vector<std::pair<std::string, std::vector<int64_t>>> trainable_token_indices;
  // Of a tied model: what is trained of embedding or head in modules_to_save is of both.
  bool ensure_weight_tying = false;
  bool use_rslora = false;  // scale alpha / sqrt(r)
  bool use_dora = false;    // magnitudes of their own (Liu et al. 2024)
  // Biases of the base that are trained: "none", "all", or "lora_only", those of adapted modules.
  std::string bias = "none";
  bool fan_in_fan_out = false;  // for PEFT: the base stores its weights transposed. Follows from it
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
  std::string name;  // "model.layers.0.self_attn.q_proj"
  int64_t rank, in_features, out_features;
  double alpha;       // ΔW = scaling() B A
  bool dora = false;  // the merged weight is magnitude / ||W + ΔW|| (W + ΔW), norms row by row
  std::vector<float> a = {}, b = {}, magnitude = {};  // the tensors of kAdapterTensors
  bool embedding = false;                             // files have B^T and A^T (LinearModule)
};

// The tensors that an adapter may have for a module, in the order of files. What goes over tensors
// (files here, flat buffers in trainer/) goes over this list: a further kind of tensor is a line.
enum class AdapterTensorKind : uint8_t {
  LoraA,  // this and the others of a module: indices of kAdapterTensors
  LoraB,
  Magnitude,  // with DoRA only
  Base        // of no module: a TrainedTensor
};
enum class AdapterDim : uint8_t { One, Rank, In, Out };
struct AdapterTensorSpec {
  AdapterTensorKind kind;
  const char* name;                           // in files: MODULE.name
  AdapterDim rows, cols;                      // rows of One: a vector
  std::vector<float> AdapterModule::*values;  // rows x cols
};
inline constexpr AdapterTensorSpec kAdapterTensors[] = {
    {AdapterTensorKind::LoraA, "lora_A.weight", AdapterDim::Rank, AdapterDim::In,
     &AdapterModule::a},
    {AdapterTensorKind::LoraB, "lora_B.weight", AdapterDim::Out, AdapterDim::Rank,
     &AdapterModule::b},
    {AdapterTensorKind::Magnitude, "lora_magnitude_vector", AdapterDim::One, AdapterDim::Out,
     &AdapterModule::magnitude}};
// Whether the module has that tensor.
inline bool has_tensor(const AdapterModule& m, const AdapterTensorSpec& t) {
  return t.kind != AdapterTensorKind::Magnitude || m.dora;
}

// Its size in one module.
int64_t dim_of(const AdapterModule& m, AdapterDim dim);
// Elements of all tensors of a module, from its shapes.
int64_t adapter_elements(const AdapterModule& m);

// A tensor of the base that is trained itself and saved beside the factors: a bias, for example.
// Its values, in fp32, row-major, stand for the base's; or their moments, or the shape alone.
struct TrainedTensor {
  TensorSpec base;        // which, its shape and its split
  std::string file_name;  // behind "base_model.model." in adapter_model.safetensors
  std::vector<float> values = {};
  std::vector<int64_t> rows = {};  // which of the base's tensor these are; empty: all, in order
  bool tied = false;               // of the embedding: stands for the head's weight too
  std::string second_name = {};    // under which files have the values once more; "": they do not
  int64_t size() const { return base.rows * base.cols; }
};

// The values of an adapter, or their moments.
struct AdapterValues {
  std::vector<AdapterModule> modules;
  std::vector<TrainedTensor> trained = {};
};

struct Adapter : AdapterValues {
  AdapterConfig config;
  double scaling(const AdapterModule& m) const;
};

// One tensor as files have it.
template <class Values>
struct AdapterTensorView {
  std::string file_name;  // in adapter_model.safetensors
  std::string name;       // in trainer_state.safetensors: before .weight, .exp_avg, .exp_avg_sq
  std::vector<int64_t> shape;
  Values* values;
  bool transposed = false;  // in adapter_model.safetensors
};
// Every tensor, in the order of files: those of each module, then the others.
std::vector<AdapterTensorView<std::vector<float>>> tensors_of(AdapterValues& adapter);
std::vector<AdapterTensorView<const std::vector<float>>> tensors_of(const AdapterValues& adapter);

// The tensors of the base that are trained beside the factors of the modules `adapted`, in the
// order of `tensors` (model_tensors()); without values.
std::vector<TrainedTensor> trained_tensors(const std::vector<TensorSpec>& tensors,
                                           const AdapterConfig& config,
                                           const std::vector<LinearModule>& adapted);

// Refuses (status 2, at `where`) what trains in PEFT and is not supported here: DoRA of transposed
// weights, biases of norms.
void check_trainable(const AdapterConfig& config, const std::vector<LinearModule>& adapted,
                     const std::vector<TensorSpec>& tensors, const std::string& where);
// That modules_to_save, trainable_token_indices and ensure_weight_tying name what can be trained,
// and nothing twice. Errors (status 2) at where(setting).
void check_saved_modules(const std::vector<TensorSpec>& tensors, const AdapterConfig& config,
                         const std::vector<LinearModule>& adapted,
                         const std::function<std::string(const char* setting)>& where);
// Those of trained_tensors() that these settings ask for. REQUIRES: check_saved_modules.
std::vector<TrainedTensor> saved_tensors(const std::vector<TensorSpec>& tensors,
                                         const AdapterConfig& config);

// Reads and checks DIR: every setting that changes the mathematics and is not supported is refused
// by name; every factor has its partner, fits the base (module names and shapes of `modules`), and
// is finite; target_modules matches exactly the modules that have factors, and `bias` the trained
// biases. F32, BF16 and F16 are read. Modules come in the order of `modules`, trained tensors in
// that of `tensors`, the model's (model_tensors()), which may be empty where there is no base.
// Errors (status 2) read "FILE: what" or "FILE: TENSOR: what".
Adapter read_adapter(const fs::path& dir, const std::vector<LinearModule>& modules,
                     const std::vector<TensorSpec>& tensors = {});
// Of a base with this configuration.
Adapter read_adapter(const fs::path& dir, const ModelConfig& model);

// Copies of the base's own weights, which PEFT saves for an embedding or head that has factors
// (MODULE.base_layer.weight), against the base. Error (status 2) naming one that differs.
void check_base_copies(const fs::path& dir, const BaseModel& base);

// Those of `modules` that the adapter has factors for.
std::vector<LinearModule> modules_with_factors(const Adapter& adapter,
                                               const std::vector<LinearModule>& modules);

// Writes adapter_config.json and adapter_model.safetensors (fp32) into the existing directory
// `dir`, as PEFT reads them. "all-linear" is written as the names that it stood for. Returns file
// name -> SHA-256.
std::map<std::string, std::string> write_adapter(const fs::path& dir, const Adapter& adapter);

// The modules that PEFT would adapt, in the order of `modules`: target_modules are names or dotted
// suffixes, or one regex (Python's syntax) that must match the whole name, or "all-linear" alone.
// exclude_modules has these forms too, but "all-linear". layers_to_transform narrows names and
// suffixes, but no entry of target_modules that is a module's whole name. `others` are the model's
// modules that LoRA here does not adapt (other_modules()); PEFT refuses them too, but for embedding
// and head. `where` names the setting in errors (status 2): no match; a target that matches one of
// `others`; a broken regex. REQUIRES: layers_to_transform stands beside no regex or "all-linear".
std::vector<LinearModule> match_targets(const AdapterConfig& config,
                                        const std::vector<LinearModule>& modules,
                                        const std::string& where,
                                        const std::vector<std::string>& others = {});
// Without layers_to_transform.
std::vector<LinearModule> match_targets(const std::vector<LinearModule>& modules,
                                        const std::vector<std::string>& targets, bool regex,
                                        const std::vector<std::string>& excluded,
                                        const std::string& where, bool exclude_regex = false,
                                        const std::vector<std::string>& others = {});

// What in `config` has no effect, a line each: an entry of target_modules or exclude_modules that
// names no module of the model, a layer of layers_to_transform or an entry of layers_pattern that
// the model has not, a key of rank_pattern or alpha_pattern that decides for none of `chosen`.
std::vector<std::string> idle_selectors(const AdapterConfig& config,
                                        const std::vector<LinearModule>& modules,
                                        const std::vector<std::string>& others,
                                        const std::vector<LinearModule>& chosen);

// Writes target_modules as the names of the modules `chosen` of `modules`, by which any version of
// PEFT finds these and no others: the last part of a name where all modules of that name are
// chosen, else the whole name; exclude_modules, layers_to_transform and layers_pattern become
// empty. Settings that say this already, but for exclude_modules, stay as they are.
void name_targets(AdapterConfig& config, const std::vector<LinearModule>& modules,
                  const std::vector<LinearModule>& chosen);

// The modules that the factors in DIR/adapter_model.safetensors belong to, with the sizes that they
// have: stands in for the base where there is none. Layer and split are not filled in.
std::vector<LinearModule> modules_of_factors(const fs::path& dir);

// What the adapter in `dir` is, line by line, for `inspect`. Checks all that can be checked without
// its base. Errors as read_adapter.
std::vector<std::string> inspect_adapter(const fs::path& dir);

}  // namespace lorashard
