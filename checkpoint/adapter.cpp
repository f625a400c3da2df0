#include "checkpoint/adapter.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <optional>
#include <set>

#include "checkpoint/expert_names.h"
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

// Module "model.layers.0.self_attn.q_proj" and LoraA of "PREFIX" + module + ".lora_A.weight"; some
// tools leave the adapter's name in: lora_A.default.weight.
struct FactorName {
  std::string prefix, module;
  AdapterTensorKind kind;
};
std::optional<FactorName> parse_factor_name(const std::string& tensor) {
  for (const AdapterTensorSpec& spec : kAdapterTensors)
    for (const char* end : {".weight", ".default.weight"}) {
      const std::string suffix = std::string(".") + spec.name + end;
      if (!tensor.ends_with(suffix)) continue;
      const std::string body = tensor.substr(0, tensor.size() - suffix.size());
      // What stands before the model's own names; without one of them, PEFT's prefix alone is
      // known.
      size_t begin = 0;
      for (const std::string root : {"model.layers.", "layers."})
        if (const size_t at = ("." + body).rfind("." + root); at != std::string::npos) {
          begin = at;
          break;
        }
      if (begin == 0 && body.starts_with(kPrefix)) begin = std::strlen(kPrefix);
      return FactorName{body.substr(0, begin), body.substr(begin), spec.kind};
    }
  return std::nullopt;
}

// The tensor has another prefix than PEFT writes.
[[noreturn]] void fail_prefix(const std::string& where, const FactorName& name) {
  // "base_model.model.layers.0": an adapter for the model without its head.
  const bool headless = !name.module.starts_with("model.");
  const std::string found =
      name.prefix.empty() ? "carries no prefix" : "carries the prefix \"" + name.prefix + "\"";
  fail_input(where, found + " before \"" + name.module.substr(0, name.module.find("layers.") + 7) +
                        "\"; \"" + kPrefix + "model.layers.\" is expected" +
                        (headless && name.prefix + name.module != name.module
                             ? ", the names that PEFT gives an adapter of the model with its head"
                             : "") +
                        ": rename the tensors, or save the adapter again with save_pretrained of "
                        "the PEFT model" +
                        (name.prefix.find("_orig_mod.") != std::string::npos
                             ? " as it is before torch.compile"
                             : ""));
}

std::string factor_name(const std::string& holder, const AdapterTensorSpec& spec) {
  return kPrefix + holder + "." + spec.name + ".weight";
}

// The module below which the factors of each of `modules` stand in files.
template <class Modules>
std::vector<std::string> factor_holders(const Modules& modules) {
  std::set<std::string> names;
  for (const auto& m : modules) names.insert(m.name);
  std::vector<std::string> holders;
  for (const auto& m : modules)
    holders.push_back(factor_holder(m.name, names.count(down_beside(m.name)) > 0));
  return holders;
}

// The file's tensors by kind, then by module.
using TensorsByModule = std::map<std::string, const TensorInfo*>;
using TensorsByKind = std::array<TensorsByModule, std::size(kAdapterTensors)>;
TensorsByKind collect_factors(const SafetensorsFile& file, const std::string& path) {
  TensorsByKind by_kind;
  for (const TensorInfo& t : file.tensors()) {
    const auto name = parse_factor_name(t.name);
    if (!name)
      fail_input(path + ": " + t.name,
                 "is no LoRA factor of a linear layer (base_model.model.MODULE.lora_A.weight or "
                 "lora_B.weight was expected); nothing else is supported");
    if (name->prefix != kPrefix || name->module.starts_with("layers."))
      fail_prefix(path + ": " + t.name, *name);
    if (t.dtype != DType::F32 && t.dtype != DType::BF16 && t.dtype != DType::F16)
      fail_input(path + ": " + t.name, "is stored as " + std::string(name_of(t.dtype)) +
                                           "; F32, BF16 or F16 is expected");
    if (!by_kind[size_t(name->kind)].emplace(name->module, &t).second)
      fail_input(path + ": " + t.name, std::string("is a second ") +
                                           kAdapterTensors[size_t(name->kind)].name +
                                           " of the same module; one is expected");
  }
  return by_kind;
}

std::vector<float> read_factor(const SafetensorsFile& file, const std::string& path,
                               const TensorInfo& t, int64_t rows, int64_t cols) {
  const std::vector<int64_t> expected = {rows, cols};
  if (t.shape != expected)
    fail_input(path + ": " + t.name,
               "has the shape " + shape_text(t.shape) + "; the base and the " +
                   "rank in adapter_config.json ask for " + shape_text(expected));
  std::vector<float> values(static_cast<size_t>(rows * cols));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = load_scalar(file.data(t), t.dtype, int64_t(i));
    if (!std::isfinite(values[i]))
      fail_input(path + ": " + t.name, "holds a value that is not finite (element " +
                                           std::to_string(i) + "); the adapter is damaged");
  }
  return values;
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
    return ranks.of(m.name) == m.lora_rank() && alphas.of(m.name) == m.alpha;
  };
  if (std::all_of(adapter.modules.begin(), adapter.modules.end(), said)) return c;
  c.rank_pattern.clear();
  c.alpha_pattern.clear();
  for (const AdapterModule& m : adapter.modules) {
    if (m.lora_rank() != c.rank) c.rank_pattern.emplace_back(m.name, m.lora_rank());
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
  for (const AdapterTensorSpec& t : kAdapterTensors) elements += m.*t.rows * m.*t.cols;
  return elements;
}

double Adapter::scaling(const AdapterModule& m) const {
  return lora_scaling(config, m.lora_rank(), m.alpha);
}

Adapter read_adapter(const fs::path& dir, const std::vector<LinearModule>& modules) {
  const std::string config_path = (dir / kConfigFile).string();
  const std::string path = (dir / kWeightsFile).string();
  PeftConfig peft = parse_peft_config(read_peft_text(dir), config_path);
  convert_expert_targets(peft.config, modules, {}, config_path);
  const SafetensorsFile file = open_weights(dir);
  TensorsByKind tensors = collect_factors(file, path);

  Adapter adapter;
  adapter.config = peft.config;
  if (const auto it = file.metadata().find(kDigestKey); it != file.metadata().end())
    adapter.config.base_digest = it->second;

  const PatternTable<int64_t> ranks(peft.config.rank_pattern, peft.config.rank,
                                    config_path + ": rank_pattern");
  const PatternTable<double> alphas(peft.config.alpha_pattern, peft.config.alpha,
                                    config_path + ": alpha_pattern");
  const std::vector<LinearModule> chosen = match_peft_targets(peft, modules, config_path);
  if (!peft.config.target_parameters.empty() &&
      std::none_of(chosen.begin(), chosen.end(), [](const auto& m) { return m.parameter; }))
    fail_input(config_path, "target_parameters \"" + peft.config.target_parameters[0] +
                                "\" matches no parameter of the base; those of a mixture of "
                                "experts are adapted, gate_up_proj, down_proj and gate.weight");
  const std::vector<std::string> holders = factor_holders(chosen);
  for (size_t i = 0; i < chosen.size(); ++i) {
    const LinearModule& m = chosen[i];
    AdapterModule module{.name = m.name,
                         .rank = ranks.of(m.name) * m.experts,
                         .in_features = m.in_features,
                         .out_features = m.out_features,
                         .alpha = alphas.of(m.name),
                         .experts = m.experts};
    for (const AdapterTensorSpec& t : kAdapterTensors) {
      TensorsByModule& left = tensors[size_t(t.kind)];
      const auto it = left.find(holders[i]);
      if (it == left.end())
        fail_input(path + ": " + factor_name(holders[i], t),
                   std::string("is missing; ") +
                       (m.parameter ? "target_parameters" : "target_modules") +
                       " in adapter_config.json asks for it" +
                       (!m.parameter || left.empty() ||
                                experts_of(left.begin()->first) != experts_of(m.name)
                            ? ""
                            : " (the file has factors for each expert by itself; load the adapter "
                              "with PEFT 0.21 and save it again, which makes them one tensor)"));
      module.*t.values = read_factor(file, path, *it->second, module.*t.rows, module.*t.cols);
      left.erase(it);
    }
    adapter.modules.push_back(std::move(module));
  }
  for (const TensorsByModule& rest : tensors)
    if (!rest.empty()) {
      const auto& [module, tensor] = *rest.begin();
      const bool known = std::any_of(modules.begin(), modules.end(), [&](const LinearModule& m) {
        return m.name == module || factor_holder(m.name, false) == module ||
               factor_holder(m.name, true) == module;
      });
      fail_input(path + ": " + tensor->name,
                 known ? "belongs to a module that target_modules in adapter_config.json does not "
                         "choose; PEFT would ignore it"
                       : "belongs to " + module + ", which is no linear layer of the base model");
    }
  if (!peft.layers_to_transform.empty()) {
    adapter.config.target_modules.clear();
    for (const LinearModule& m : chosen)
      if (!m.parameter) adapter.config.target_modules.push_back(m.name);
    adapter.config.exclude_modules.clear();
    adapter.config.exclude_regex = false;
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
  const std::vector<std::string> holders = factor_holders(adapter.modules);
  for (size_t i = 0; i < adapter.modules.size(); ++i) {
    const AdapterModule& m = adapter.modules[i];
    for (const AdapterTensorSpec& t : kAdapterTensors)
      entries.push_back({factor_name(holders[i], t), DType::F32, {m.*t.rows, m.*t.cols}});
  }
  std::map<std::string, std::string> metadata = {{"format", "pt"}};
  if (!config.base_digest.empty()) metadata[kDigestKey] = config.base_digest;
  SafetensorsWriter weights(dir / kWeightsFile, entries, metadata);
  for (const AdapterModule& m : adapter.modules)
    for (const AdapterTensorSpec& t : kAdapterTensors)
      weights.write((m.*t.values).data(), (m.*t.values).size() * sizeof(float));
  weights.close();
  digests[kWeightsFile] = weights.sha256();
  return digests;
}

std::vector<LinearModule> modules_of_factors(const fs::path& dir) {
  const std::string path = (dir / kWeightsFile).string();
  const SafetensorsFile file = open_weights(dir);
  const PeftConfig peft = parse_peft_config(read_peft_text(dir), (dir / kConfigFile).string());
  const auto [a, b] = collect_factors(file, path);
  std::vector<LinearModule> modules;
  for (const auto& [module, tensor] : a) {
    const auto partner = b.find(module);
    if (partner == b.end())
      fail_input(
          path + ": " + factor_name(module, kAdapterTensors[size_t(AdapterTensorKind::LoraB)]),
          "is missing; its lora_A is there");
    if (tensor->shape.size() != 2 || partner->second->shape.size() != 2)
      fail_input(path + ": " + tensor->name, "is no pair of matrices");
    LinearModule m{module, 0, partner->second->shape[0], tensor->shape[1], Split::None};
    name_parameter(m, peft.config, a.count(module + ".base_layer") > 0, tensor->shape[0]);
    modules.push_back(std::move(m));
  }
  return modules;
}

std::vector<std::string> inspect_adapter(const fs::path& dir) {
  const Adapter adapter = read_adapter(dir, modules_of_factors(dir));
  const AdapterConfig& c = adapter.config;

  int64_t weights = 0, low = c.rank, high = c.rank;
  for (const AdapterModule& m : adapter.modules) {
    weights += adapter_elements(m);
    low = std::min(low, m.lora_rank());
    high = std::max(high, m.lora_rank());
  }
  std::string targets;
  for (const std::string& t : c.target_modules) targets += (targets.empty() ? "" : ", ") + t;
  std::string parameters;
  for (const std::string& t : c.target_parameters)
    parameters += (parameters.empty() ? "; target parameters: " : ", ") + t;
  const auto number = [](double v) {
    std::string s = std::to_string(v);
    s.erase(s.find_last_not_of('0') + 1);
    if (s.back() == '.') s.pop_back();
    return s;
  };
  return {
      "LoRA adapter (PEFT layout): " + dir.string(),
      "rank " +
          (low == high ? std::to_string(low)
                       : std::to_string(low) + " to " + std::to_string(high)) +
          ", alpha " + number(c.alpha) + ", dropout " + number(c.dropout) +
          (c.use_rslora ? ", scaled by alpha / sqrt(rank)" : ", scaled by alpha / rank"),
      "target modules: " + targets + parameters,
      std::to_string(adapter.modules.size()) + " modules, " + std::to_string(weights) +
          " weights, all finite",
      "base model: " + (c.base_model.empty() ? "not named" : c.base_model),
      "base digest: " + (c.base_digest.empty() ? "none (made elsewhere)" : c.base_digest),
      std::string(kWeightsFile) + " SHA-256 " + sha256_file(dir / kWeightsFile),
      std::string(kConfigFile) + " SHA-256 " + sha256_file(dir / kConfigFile),
  };
}

}  // namespace lorashard
