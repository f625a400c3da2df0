#include "checkpoint/adapter.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <optional>
#include <set>

#include "checkpoint/base_model.h"
#include "checkpoint/pattern.h"
#include "checkpoint/peft_config.h"
#include "checkpoint/safetensors.h"
#include "configs/error.h"
#include "kernels/float_types.h"

namespace lorashard {
namespace {

constexpr const char* kConfigFile = "adapter_config.json";
constexpr const char* kWeightsFile = "adapter_model.safetensors";
constexpr const char* kPrefix = "base_model.model.";  // PEFT's wrapping of the model
constexpr const char* kTokenRows = ".token_adapter.trainable_tokens_delta";
constexpr const char* kBaseCopy = ".base_layer.weight";
constexpr const char* kDigestKey = "lorashard_base_digest";

// The first pattern that matches decides.
template <class T>
class PatternTable {
 public:
  template <class Patterns>
  PatternTable(const Patterns& patterns, T otherwise, const std::string& where)
      : otherwise_(otherwise) {
    for (const auto& [key, value] : patterns)
      table_.emplace_back(module_pattern(key, where), value);
  }
  T of(const std::string& module) const {
    for (const auto& [pattern, value] : table_)
      if (pattern.matches_start(module)) return value;
    return otherwise_;
  }

 private:
  std::vector<std::pair<Pattern, T>> table_;
  T otherwise_;
};

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + ")";
}

// How names of a kind may end: some tools leave the adapter's name in, lora_A.default.weight, and a
// magnitude's ".weight", which PEFT removes.
std::vector<std::string> endings_of(const AdapterTensorSpec& spec) {
  const std::string name = std::string(".") + spec.name, weight = ".weight";
  if (!name.ends_with(weight)) return {name, name + weight, name + ".default" + weight};
  return {name, name.substr(0, name.size() - weight.size()) + ".default" + weight};
}

// Files have B^T and A^T of an embedding under these names (LinearModule).
std::string embedding_factor(AdapterTensorKind kind) {
  return kind == AdapterTensorKind::LoraA ? "lora_embedding_B" : "lora_embedding_A";
}

// Module "model.layers.0.self_attn.q_proj" and LoraA of "PREFIX" + module + ".lora_A.weight".
struct FactorName {
  std::string prefix, module;
  AdapterTensorKind kind;
  bool embedding = false;
};
std::optional<FactorName> parse_factor_name(const std::string& tensor) {
  for (const AdapterTensorSpec& spec : kAdapterTensors) {
    std::vector<std::string> endings = endings_of(spec);
    const size_t linear = endings.size();
    if (spec.kind != AdapterTensorKind::Magnitude)
      for (const char* end : {"", ".default"})
        endings.push_back("." + embedding_factor(spec.kind) + end);
    for (size_t e = 0; e < endings.size(); ++e) {
      const std::string& suffix = endings[e];
      if (!tensor.ends_with(suffix)) continue;
      const std::string body = tensor.substr(0, tensor.size() - suffix.size());
      // What stands before the model's own names; without one of them, PEFT's prefix alone is
      // known.
      size_t begin = 0;
      for (const std::string root : {"model.layers.", "transformer.h.", "layers.", "h."})
        if (const size_t at = ("." + body).rfind("." + root); at != std::string::npos) {
          begin = at;
          break;
        }
      if (begin == 0 && body.starts_with(kPrefix)) begin = std::strlen(kPrefix);
      return FactorName{body.substr(0, begin), body.substr(begin), spec.kind, e >= linear};
    }
  }
  return std::nullopt;
}

// The tensor has another prefix than PEFT writes.
[[noreturn]] void fail_prefix(const std::string& where, const FactorName& name) {
  // "base_model.model.layers.0": an adapter for the model without its head.
  const bool gpt2 = name.module.starts_with("h.") || name.module.starts_with("transformer.h.");
  const std::string root = gpt2 ? "transformer." : "model.", layers = gpt2 ? "h." : "layers.";
  const bool headless = !name.module.starts_with(root);
  const std::string found =
      name.prefix.empty() ? "carries no prefix" : "carries the prefix \"" + name.prefix + "\"";
  fail_input(where, found + " before \"" + (headless ? layers : root + layers) + "\"; \"" +
                        kPrefix + root + layers + "\" is expected" +
                        (headless && name.prefix + name.module != name.module
                             ? ", the names that PEFT gives an adapter of the model with its head"
                             : "") +
                        ": rename the tensors, or save the adapter again with save_pretrained of "
                        "the PEFT model" +
                        (name.prefix.find("_orig_mod.") != std::string::npos
                             ? " as it is before torch.compile"
                             : ""));
}

std::string factor_name(const std::string& module, const AdapterTensorSpec& spec,
                        bool embedding = false) {
  return kPrefix + module + "." + (embedding ? embedding_factor(spec.kind) : spec.name);
}

// The transposed matrix.
std::vector<float> transposed(const std::vector<float>& x, int64_t rows, int64_t cols) {
  std::vector<float> y(x.size());
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j) y[size_t(j * rows + i)] = x[size_t(i * cols + j)];
  return y;
}

std::vector<int64_t> shape_of(const AdapterModule& m, const AdapterTensorSpec& t) {
  if (t.rows == AdapterDim::One) return {dim_of(m, t.cols)};
  return {dim_of(m, t.rows), dim_of(m, t.cols)};
}

template <class Floats, class Values>
std::vector<AdapterTensorView<Floats>> list_tensors(Values& adapter) {
  std::vector<AdapterTensorView<Floats>> list;
  for (auto& m : adapter.modules)
    for (const AdapterTensorSpec& t : kAdapterTensors) {
      if (!has_tensor(m, t)) continue;
      std::string name = m.name + "." + t.name;
      if (const std::string end = ".weight"; name.ends_with(end))
        name.resize(name.size() - end.size());
      list.push_back(
          {factor_name(m.name, t, m.embedding), name, shape_of(m, t), &(m.*t.values), m.embedding});
    }
  for (auto& t : adapter.trained)
    list.push_back({kPrefix + t.file_name, t.base.name,
                    t.base.vector ? std::vector{t.size()} : std::vector{t.base.rows, t.base.cols},
                    &t.values});
  return list;
}

// What PEFT saves of embedding and head where they have factors: the base's own weights.
bool is_base_copy(const std::string& tensor) {
  return tensor.starts_with(kPrefix) && tensor.ends_with(kBaseCopy);
}

// The file's tensors: factors by kind, then by module; those of the base by their names behind
// PEFT's prefix.
using TensorsByName = std::map<std::string, const TensorInfo*>;
struct FileTensors {
  std::array<TensorsByName, std::size(kAdapterTensors)> factors;
  TensorsByName trained;
};
FileTensors collect_tensors(const SafetensorsFile& file, const std::string& path,
                            const AdapterConfig& config) {
  FileTensors tensors;
  for (const TensorInfo& t : file.tensors()) {
    const auto name = parse_factor_name(t.name);
    if (!name && t.name.starts_with(kPrefix)) {
      const std::string own = t.name.substr(std::strlen(kPrefix));
      if (is_base_copy(t.name)) continue;  // check_base_copies()
      if (own.ends_with(".bias") || (own.ends_with(".weight") && !config.modules_to_save.empty()) ||
          (own.ends_with(kTokenRows) && !config.trainable_token_indices.empty())) {
        tensors.trained.emplace(own, &t);
        continue;
      }
    }
    if (!name)
      fail_input(path + ": " + t.name,
                 "is no LoRA factor of a linear layer (base_model.model.MODULE.lora_A.weight or "
                 "lora_B.weight was expected); nothing else is supported");
    if (name->prefix != kPrefix || name->module.starts_with("layers.") ||
        name->module.starts_with("h."))
      fail_prefix(path + ": " + t.name, *name);
    if (!tensors.factors[size_t(name->kind)].emplace(name->module, &t).second)
      fail_input(path + ": " + t.name, std::string("is a second ") +
                                           kAdapterTensors[size_t(name->kind)].name +
                                           " of the same module; one is expected");
  }
  return tensors;
}

std::vector<float> read_values(const SafetensorsFile& file, const std::string& path,
                               const TensorInfo& t, const std::vector<int64_t>& expected) {
  if (t.shape != expected)
    fail_input(path + ": " + t.name,
               "has the shape " + shape_text(t.shape) + "; the base and the " +
                   "rank in adapter_config.json ask for " + shape_text(expected));
  if (t.dtype != DType::F32 && t.dtype != DType::BF16 && t.dtype != DType::F16)
    fail_input(path + ": " + t.name,
               "is stored as " + std::string(name_of(t.dtype)) + "; F32, BF16 or F16 is expected");
  std::vector<float> values(t.bytes / size_t(size_of(t.dtype)));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = load_scalar(file.data(t), t.dtype, int64_t(i));
    if (!std::isfinite(values[i]))
      fail_input(path + ": " + t.name, "holds a value that is not finite (element " +
                                           std::to_string(i) + "); the adapter is damaged");
  }
  return values;
}

// What a file holds beside factors, as tensors of a base: stands in for the base where there is
// none.
std::vector<TensorSpec> base_tensors(const TensorsByName& trained) {
  std::vector<TensorSpec> tensors;
  for (const auto& [name, info] : trained) {
    std::string base = name;
    if (const size_t at = base.rfind(".base_layer.bias"); at != std::string::npos)
      base.replace(at, std::string::npos, ".bias");
    if (info->shape.size() == 2) {
      if (base.ends_with(kTokenRows)) base.resize(base.size() - std::strlen(kTokenRows));
      if (!base.ends_with(".weight")) base += ".weight";
      tensors.push_back({base, info->shape[0], info->shape[1], false, Split::VocabRows});
      continue;
    }
    const int64_t n = info->shape.size() == 1 ? info->shape[0] : 0;
    tensors.push_back({base, 1, n, true, Split::None});
  }
  return tensors;
}

std::string read_peft_text(const fs::path& dir) {
  std::error_code ec;
  if (!fs::exists(dir / kConfigFile, ec))
    fail_input(dir.string(),
               "holds no adapter_config.json; the directory of a PEFT adapter was expected");
  return read_text(dir / kConfigFile);
}

SafetensorsFile open_weights(const fs::path& dir) {
  std::error_code ec;
  if (!fs::exists(dir / kWeightsFile, ec)) {
    if (fs::exists(dir / "adapter_model.bin", ec))
      fail_input((dir / "adapter_model.bin").string(),
                 "is a pickle file, which is not read because it can run code; save the adapter "
                 "with safe_serialization=True, which gives adapter_model.safetensors");
    fail_input(dir.string(), "holds no adapter_model.safetensors");
  }
  return SafetensorsFile::open(dir / kWeightsFile);
}

// The configuration under which PEFT gives each module the rank and alpha that it has here: where
// the patterns do not say so already they are replaced by whole module names.
AdapterConfig settle_patterns(const Adapter& adapter) {
  AdapterConfig c = adapter.config;
  const PatternTable<int64_t> ranks(c.rank_pattern, c.rank, "rank_pattern");
  const PatternTable<double> alphas(c.alpha_pattern, c.alpha, "alpha_pattern");
  const auto said = [&](const AdapterModule& m) {
    return ranks.of(m.name) == m.rank && alphas.of(m.name) == m.alpha;
  };
  if (std::all_of(adapter.modules.begin(), adapter.modules.end(), said)) return c;
  c.rank_pattern.clear();
  c.alpha_pattern.clear();
  for (const AdapterModule& m : adapter.modules) {
    if (m.rank != c.rank) c.rank_pattern.emplace_back(m.name, m.rank);
    if (m.alpha != c.alpha) c.alpha_pattern.emplace_back(m.name, m.alpha);
  }
  return c;
}

}  // namespace

int64_t module_rank(const AdapterConfig& config, const std::string& module) {
  return PatternTable<int64_t>(config.rank_pattern, config.rank, "rank_pattern").of(module);
}

double module_alpha(const AdapterConfig& config, const std::string& module) {
  return PatternTable<double>(config.alpha_pattern, config.alpha, "alpha_pattern").of(module);
}

double lora_scaling(const AdapterConfig& config, int64_t rank, double alpha) {
  return config.use_rslora ? alpha / std::sqrt(double(rank)) : alpha / double(rank);
}

int64_t adapter_elements(const AdapterModule& m) {
  int64_t elements = 0;
  for (const AdapterTensorSpec& t : kAdapterTensors)
    if (has_tensor(m, t)) elements += dim_of(m, t.rows) * dim_of(m, t.cols);
  return elements;
}

int64_t dim_of(const AdapterModule& m, AdapterDim dim) {
  switch (dim) {
    case AdapterDim::One:
      return 1;
    case AdapterDim::Rank:
      return m.rank;
    case AdapterDim::In:
      return m.in_features;
    case AdapterDim::Out:
      return m.out_features;
  }
  return 0;
}

std::vector<AdapterTensorView<std::vector<float>>> tensors_of(AdapterValues& adapter) {
  return list_tensors<std::vector<float>>(adapter);
}

std::vector<AdapterTensorView<const std::vector<float>>> tensors_of(const AdapterValues& adapter) {
  return list_tensors<const std::vector<float>>(adapter);
}

double Adapter::scaling(const AdapterModule& m) const {
  return lora_scaling(config, m.rank, m.alpha);
}

Adapter read_adapter(const fs::path& dir, const ModelConfig& model) {
  return read_adapter(dir, lora_modules(model), model_tensors(model));
}

Adapter read_adapter(const fs::path& dir, const std::vector<LinearModule>& modules,
                     const std::vector<TensorSpec>& base) {
  const std::string config_path = (dir / kConfigFile).string();
  const std::string path = (dir / kWeightsFile).string();
  Adapter adapter;
  adapter.config = parse_peft_config(read_peft_text(dir), config_path);
  const AdapterConfig& config = adapter.config;
  const SafetensorsFile file = open_weights(dir);
  FileTensors tensors = collect_tensors(file, path, config);
  if (const auto it = file.metadata().find(kDigestKey); it != file.metadata().end())
    adapter.config.base_digest = it->second;

  const PatternTable<int64_t> ranks(config.rank_pattern, config.rank,
                                    config_path + ": rank_pattern");
  const PatternTable<double> alphas(config.alpha_pattern, config.alpha,
                                    config_path + ": alpha_pattern");
  const std::vector<LinearModule> adapted = match_targets(config, modules, config_path);
  check_trainable(config, adapted, base, config_path);
  adapter.config.fan_in_fan_out = false;
  for (const LinearModule& m : adapted) {
    adapter.config.fan_in_fan_out |= m.transposed;
    if (config.use_dora && m.role != ModuleRole::Layer)
      fail_input(config_path, "use_dora is true and target_modules adapts " + m.name +
                                  ", where DoRA is not supported; the layers' modules can have it");
    AdapterModule module{.name = m.name,
                         .rank = ranks.of(m.name),
                         .in_features = m.in_features,
                         .out_features = m.out_features,
                         .alpha = alphas.of(m.name),
                         .dora = config.use_dora,
                         .embedding = m.role == ModuleRole::Embedding};
    for (const AdapterTensorSpec& t : kAdapterTensors) {
      if (!has_tensor(module, t)) continue;
      TensorsByName& left = tensors.factors[size_t(t.kind)];
      const auto it = left.find(m.name);
      if (it == left.end() || parse_factor_name(it->second->name)->embedding != module.embedding)
        fail_input(path + ": " + factor_name(m.name, t, module.embedding),
                   t.kind == AdapterTensorKind::Magnitude
                       ? "is missing; use_dora in adapter_config.json asks for it"
                       : "is missing; target_modules in adapter_config.json asks for it");
      std::vector<int64_t> shape = shape_of(module, t);
      if (module.embedding) std::reverse(shape.begin(), shape.end());
      module.*t.values = read_values(file, path, *it->second, shape);
      if (module.embedding) module.*t.values = transposed(module.*t.values, shape[0], shape[1]);
      left.erase(it);
    }
    adapter.modules.push_back(std::move(module));
  }
  if (!base.empty())
    check_saved_modules(base, config, adapted, [&](const char*) { return config_path; });
  adapter.trained =
      trained_tensors(base.empty() ? base_tensors(tensors.trained) : base, config, adapted);
  for (TrainedTensor& t : adapter.trained) {
    const auto it = tensors.trained.find(t.file_name);
    if (it == tensors.trained.end())
      fail_input(
          path + ": " + kPrefix + t.file_name,
          t.base.name.ends_with(".bias")
              ? "is missing; bias in adapter_config.json is \"" + config.bias + "\" and asks for it"
              : "is missing; " +
                    std::string(t.rows.empty() ? "modules_to_save" : "trainable_token_indices") +
                    " in adapter_config.json asks for it");
    const std::vector<int64_t> shape =
        t.base.vector ? std::vector{t.size()} : std::vector{t.base.rows, t.base.cols};
    t.values = read_values(file, path, *it->second, shape);
    tensors.trained.erase(it);
    const auto second = tensors.trained.find(t.second_name);
    if (second == tensors.trained.end()) continue;
    if (read_values(file, path, *second->second, shape) != t.values)
      fail_input(path + ": " + second->second->name,
                 "differs from " + t.file_name +
                     "; ensure_weight_tying in adapter_config.json makes the two one");
    tensors.trained.erase(second);
  }
  if (!tensors.trained.empty() && !tensors.trained.begin()->first.ends_with(".bias"))
    fail_input(path + ": " + tensors.trained.begin()->second->name,
               "is no LoRA factor, and neither modules_to_save nor trainable_token_indices in "
               "adapter_config.json asks for it in this base");
  if (!tensors.trained.empty())
    fail_input(path + ": " + tensors.trained.begin()->second->name,
               config.bias == "none"
                   ? "is no LoRA factor, and bias in adapter_config.json is \"none\""
                   : "is no bias that bias \"" + config.bias +
                         "\" in adapter_config.json trains in this base");
  for (const TensorsByName& rest : tensors.factors)
    if (!rest.empty()) {
      const auto& [module, tensor] = *rest.begin();
      if (parse_factor_name(tensor->name)->kind == AdapterTensorKind::Magnitude && !config.use_dora)
        fail_input(path + ": " + tensor->name,
                   "is a magnitude of DoRA, and use_dora in adapter_config.json is false");
      const bool known = std::any_of(modules.begin(), modules.end(),
                                     [&](const LinearModule& m) { return m.name == module; });
      fail_input(path + ": " + tensor->name,
                 known ? "belongs to a module that target_modules in adapter_config.json does not "
                         "choose; PEFT would ignore it"
                       : "belongs to " + module + ", which is no linear layer of the base model");
    }
  return adapter;
}

std::vector<LinearModule> modules_with_factors(const Adapter& adapter,
                                               const std::vector<LinearModule>& modules) {
  std::set<std::string> names;
  for (const AdapterModule& m : adapter.modules) names.insert(m.name);
  std::vector<LinearModule> found;
  for (const LinearModule& m : modules)
    if (names.count(m.name)) found.push_back(m);
  return found;
}

std::map<std::string, std::string> write_adapter(const fs::path& dir, const Adapter& adapter) {
  AdapterConfig config = settle_patterns(adapter);
  std::string first = config.target_modules.size() == 1 ? config.target_modules[0] : "";
  for (char& c : first) c = char(std::tolower(static_cast<unsigned char>(c)));
  if (first == "all-linear") {  // PEFT takes it as a name when it stands in a list
    std::set<std::string> names;
    for (const AdapterModule& m : adapter.modules)
      names.insert(m.name.substr(m.name.rfind('.') + 1));
    config.target_modules = {names.begin(), names.end()};
    config.target_regex = false;
  }

  std::map<std::string, std::string> digests;
  OutputFile text(dir / kConfigFile);
  text.write(format_peft_config(config));
  text.close();
  digests[kConfigFile] = text.sha256();

  std::vector<SafetensorsWriter::Entry> entries;
  const auto tensors = tensors_of(adapter);
  for (const auto& t : tensors) {
    entries.push_back({t.file_name, DType::F32, t.shape});
    if (t.transposed) std::reverse(entries.back().shape.begin(), entries.back().shape.end());
  }
  for (const TrainedTensor& t : adapter.trained)
    if (!t.second_name.empty())
      entries.push_back({kPrefix + t.second_name, DType::F32, {t.base.rows, t.base.cols}});
  std::map<std::string, std::string> metadata = {{"format", "pt"}};
  if (!config.base_digest.empty()) metadata[kDigestKey] = config.base_digest;
  SafetensorsWriter weights(dir / kWeightsFile, entries, metadata);
  const auto write = [&](const std::vector<float>& values) {
    weights.write(values.data(), values.size() * sizeof(float));
  };
  for (const auto& t : tensors)
    write(t.transposed ? transposed(*t.values, t.shape[0], t.shape[1]) : *t.values);
  for (const TrainedTensor& t : adapter.trained)
    if (!t.second_name.empty()) write(t.values);
  weights.close();
  digests[kWeightsFile] = weights.sha256();
  return digests;
}

void check_base_copies(const fs::path& dir, const BaseModel& base) {
  const std::string path = (dir / kWeightsFile).string();
  const SafetensorsFile file = open_weights(dir);
  for (const TensorInfo& t : file.tensors()) {
    if (!is_base_copy(t.name)) continue;
    const size_t prefix = std::strlen(kPrefix);
    const std::string module =
        t.name.substr(prefix, t.name.size() - prefix - std::strlen(kBaseCopy));
    const std::string name = stored_tensor(base.config(), module + ".weight");
    const BaseModel::Tensor* ours = base.find(name);
    if (!ours || ours->shape != t.shape)
      fail_input(path + ": " + t.name, "is the weight of a base that has another shape or name");
    if (t.dtype != DType::F32 && t.dtype != DType::BF16 && t.dtype != DType::F16)
      fail_input(path + ": " + t.name, "is stored as " + std::string(name_of(t.dtype)) +
                                           "; F32, BF16 or F16 is expected");
    for (int64_t row = 0; row < ours->rows(); ++row) {
      const WeightSlice slice = base.slice(name, {row, row + 1, 0, ours->cols()});
      for (int64_t j = 0; j < ours->cols(); ++j) {
        // The narrower of the two types decides what a copy keeps.
        float kept = load_scalar(slice.matrix.data, slice.matrix.dtype, j), rounded = 0;
        store_scalar(&rounded, t.dtype, 0, kept);
        kept = load_scalar(&rounded, t.dtype, 0);
        if (load_scalar(file.data(t), t.dtype, row * ours->cols() + j) != kept)
          fail_input(path + ": " + t.name,
                     "differs from the base's " + name +
                         "; PEFT would load it in its place: give the base that the adapter was "
                         "made for");
      }
    }
  }
}

std::vector<LinearModule> modules_of_factors(const fs::path& dir) {
  const std::string path = (dir / kWeightsFile).string();
  const AdapterConfig config = parse_peft_config(read_peft_text(dir), (dir / kConfigFile).string());
  const SafetensorsFile file = open_weights(dir);
  const FileTensors tensors = collect_tensors(file, path, config);
  const TensorsByName &a = tensors.factors[size_t(AdapterTensorKind::LoraA)],
                      &b = tensors.factors[size_t(AdapterTensorKind::LoraB)];
  std::vector<LinearModule> modules;
  for (const auto& [module, tensor] : a) {
    const auto partner = b.find(module);
    if (partner == b.end())
      fail_input(
          path + ": " + factor_name(module, kAdapterTensors[size_t(AdapterTensorKind::LoraB)]),
          "is missing; its lora_A is there");
    if (tensor->shape.size() != 2 || partner->second->shape.size() != 2)
      fail_input(path + ": " + tensor->name, "is no pair of matrices");
    modules.push_back({module, 0, partner->second->shape[0], tensor->shape[1], Split::None});
    if (parse_factor_name(tensor->name)->embedding) {  // B^T and A^T
      modules.back().role = ModuleRole::Embedding;
      modules.back().out_features = partner->second->shape[1];
      modules.back().in_features = tensor->shape[0];
    }
  }
  return modules;
}

std::vector<std::string> inspect_adapter(const fs::path& dir) {
  const Adapter adapter = read_adapter(dir, modules_of_factors(dir), {});
  const AdapterConfig& c = adapter.config;

  int64_t weights = 0, low = c.rank, high = c.rank;
  for (const AdapterModule& m : adapter.modules) {
    weights += adapter_elements(m);
    low = std::min(low, m.rank);
    high = std::max(high, m.rank);
  }
  for (const TrainedTensor& t : adapter.trained) weights += t.size();
  std::string targets;
  for (const std::string& t : c.target_modules) targets += (targets.empty() ? "" : ", ") + t;
  const auto number = [](double v) {
    std::string s = std::to_string(v);
    s.erase(s.find_last_not_of('0') + 1);
    if (s.back() == '.') s.pop_back();
    return s;
  };
  if (!c.layers_to_transform.empty()) {
    targets += "; in layers ";
    for (size_t i = 0; i < c.layers_to_transform.size(); ++i)
      targets += (i ? ", " : "") + std::to_string(c.layers_to_transform[i]);
  }
  return {
      std::string(c.use_dora ? "DoRA" : "LoRA") + " adapter (PEFT layout): " + dir.string(),
      "rank " +
          (low == high ? std::to_string(low)
                       : std::to_string(low) + " to " + std::to_string(high)) +
          ", alpha " + number(c.alpha) + ", dropout " + number(c.dropout) +
          (c.use_rslora ? ", scaled by alpha / sqrt(rank)" : ", scaled by alpha / rank"),
      "target modules: " + targets,
      std::to_string(adapter.modules.size()) + " modules, " +
          (adapter.trained.empty()
               ? ""
               : std::to_string(adapter.trained.size()) + " trained tensors of the base, ") +
          std::to_string(weights) + " weights, all finite",
      "base model: " + (c.base_model.empty() ? "not named" : c.base_model),
      "base digest: " + (c.base_digest.empty() ? "none (made elsewhere)" : c.base_digest),
      std::string(kWeightsFile) + " SHA-256 " + sha256_file(dir / kWeightsFile),
      std::string(kConfigFile) + " SHA-256 " + sha256_file(dir / kConfigFile),
  };
}

}  // namespace lorashard
