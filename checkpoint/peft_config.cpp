#include "checkpoint/peft_config.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "checkpoint/json_strict.h"
#include "checkpoint/pattern.h"
#include "configs/error.h"

namespace lorashard {
namespace {

using Json = nlohmann::ordered_json;

// Settings that say nothing about the mathematics, or only together with one that is refused.
const std::set<std::string> kWithoutEffect = {
    "auto_mapping", "base_model_name_or_path", "inference_mode", "megatron_core",
    "peft_version", "qalora_group_size",       "revision",       "runtime_config",
    "task_type",    "init_lora_weights",       "peft_type",      "lorashard_base_digest",
};

bool is_neutral(const Json& value) {
  return value.is_null() || value == false ||
         ((value.is_string() || value.is_structured()) && value.size() == 0) || value == "";
}

// Typed access to the settings of one file.
class Settings {
 public:
  Settings(const Json& json, const std::string& source) : json_(json), source_(source) {}

  // The value if it is there and not null.
  const Json* find(const char* key) {
    used_.insert(key);
    const auto it = json_.find(key);
    return it == json_.end() || it->is_null() ? nullptr : &*it;
  }
  [[noreturn]] void fail(const std::string& key, const std::string& what) const {
    fail_input(source_, key + " " + what);
  }
  int64_t positive(const std::string& key, const Json& value) const {
    if (!value.is_number_integer() || value <= 0 || value > std::numeric_limits<int32_t>::max())
      fail(key, "is " + value.dump() + "; a positive whole number was expected");
    return value.get<int64_t>();
  }
  double number(const std::string& key, const Json& value) const {
    if (!value.is_number() || !std::isfinite(value.get<double>()))
      fail(key, "is " + value.dump() + "; a number was expected");
    return value.get<double>();
  }
  bool boolean(const char* key) {
    const Json* value = find(key);
    if (value && !value->is_boolean())
      fail(key, "is " + value->dump() + "; true or false was expected");
    return value && value->get<bool>();
  }
  // A list of names, or a single string.
  std::vector<std::string> names(const char* key, bool& single) {
    const Json* value = find(key);
    single = value && value->is_string();
    if (!value) return {};
    if (single) {
      const auto text = value->get<std::string>();
      if (!text.empty()) return {text};
      single = false;
      return {};
    }
    std::vector<std::string> result;
    for (const Json& item : *value) {
      if (!value->is_array() || !item.is_string())
        fail(key, "is " + value->dump() + "; a list of names or one string was expected");
      result.push_back(item.get<std::string>());
    }
    if (!value->is_array())
      fail(key, "is " + value->dump() + "; a list of names or one string was expected");
    return result;
  }
  template <class T, class Read>
  std::vector<std::pair<std::string, T>> patterns(const char* key, Read read) {
    std::vector<std::pair<std::string, T>> result;
    const Json* value = find(key);
    if (!value) return result;
    if (!value->is_object())
      fail(key, "is " + value->dump() + "; a map from module names to numbers was expected");
    for (const auto& [pattern, number] : value->items())
      result.emplace_back(pattern, read(std::string(key) + " of \"" + pattern + "\"", number));
    return result;
  }
  // Everything that was not asked for must be without effect.
  void refuse_the_rest() const {
    for (const auto& [key, value] : json_.items())
      if (!used_.count(key) && !kWithoutEffect.count(key) && !is_neutral(value))
        fail(key, "is " + value.dump() + ", which is not supported; plain LoRA adapters are");
  }

 private:
  const Json& json_;
  const std::string& source_;
  std::set<std::string> used_;
};

void check_kind(Settings& s) {
  const Json* type = s.find("peft_type");
  if (!type) s.fail("peft_type", "is missing; \"LORA\" was expected");
  if (*type != "LORA") s.fail("peft_type", "is " + type->dump() + "; only \"LORA\" is supported");
  if (const Json* task = s.find("task_type"); task && *task != "CAUSAL_LM")
    s.fail("task_type", "is " + task->dump() + "; only \"CAUSAL_LM\" is supported");
  if (const Json* bias = s.find("bias"); bias && *bias != "none")
    s.fail("bias", "is " + bias->dump() + "; only \"none\" is supported");
  if (s.boolean("fan_in_fan_out")) s.fail("fan_in_fan_out", "is true; only false is supported");
  // These ways to start do not touch the base. Others (PiSSA, OLoRA, CorDA, LoftQ, …) replace it by
  // a residual, so that the factors alone do not say what the model is.
  static const std::set<std::string> kept = {"gaussian", "eva", "orthogonal"};
  if (const Json* init = s.find("init_lora_weights");
      init && !init->is_boolean() && !(init->is_string() && kept.count(init->get<std::string>())))
    s.fail("init_lora_weights",
           "is " + init->dump() +
               ", which changes the base; convert the adapter to plain LoRA "
               "(PEFT: save_pretrained with path_initial_model_for_weight_conversion)");
}

// A whole number is written as such: PEFT declares alpha as int, and so do its readers.
Json plain_number(double value) {
  if (value == std::floor(value) && std::fabs(value) < 1e15) return int64_t(value);
  return value;
}

}  // namespace

PeftConfig parse_peft_config(const std::string& text, const std::string& source) {
  if (!parse_json_strict(text, source).is_object())
    fail_input(source, "is not a JSON object; PEFT's adapter_config.json was expected");
  const Json json = Json::parse(text);
  Settings s(json, source);
  check_kind(s);

  PeftConfig peft;
  AdapterConfig& c = peft.config;
  c.rank = 8;  // PEFT's defaults
  c.alpha = 8;
  if (const Json* r = s.find("r")) c.rank = s.positive("r", *r);
  if (const Json* alpha = s.find("lora_alpha")) c.alpha = s.number("lora_alpha", *alpha);
  if (const Json* dropout = s.find("lora_dropout")) c.dropout = s.number("lora_dropout", *dropout);
  if (c.dropout < 0 || c.dropout >= 1)
    s.fail("lora_dropout", "is " + std::to_string(c.dropout) + "; it must lie in [0, 1)");
  c.use_rslora = s.boolean("use_rslora");
  c.target_modules = s.names("target_modules", c.target_regex);
  bool one_name = false;
  c.target_parameters = s.names("target_parameters", one_name);
  if (one_name) s.fail("target_parameters", "is a single string; a list of names was expected");
  if (c.target_modules.empty() && c.target_parameters.empty())
    s.fail("target_modules", "is missing or empty; the names of the adapted modules were expected");
  if (!c.target_parameters.empty() && c.dropout > 0)
    s.fail("lora_dropout",
           "is " + std::to_string(c.dropout) +
               " beside target_parameters; PEFT has no dropout there, it must be 0");
  c.exclude_modules = s.names("exclude_modules", c.exclude_regex);
  c.rank_pattern = s.patterns<int64_t>(
      "rank_pattern", [&](const std::string& key, const Json& v) { return s.positive(key, v); });
  c.alpha_pattern = s.patterns<double>(
      "alpha_pattern", [&](const std::string& key, const Json& v) { return s.number(key, v); });

  if (const Json* layers = s.find("layers_to_transform")) {
    for (const Json& layer : layers->is_array() ? *layers : Json::array({*layers})) {
      if (!layer.is_number_integer())
        s.fail("layers_to_transform", "is " + layers->dump() + "; layer numbers were expected");
      peft.layers_to_transform.push_back(layer.get<int64_t>());
    }
  }
  bool single = false;
  peft.layers_pattern = s.names("layers_pattern", single);
  if (c.target_regex && (!peft.layers_to_transform.empty() || !peft.layers_pattern.empty()))
    s.fail("layers_to_transform", "cannot stand beside a target_modules that is a single string");
  if (const Json* base = s.find("base_model_name_or_path")) {
    if (!base->is_string()) s.fail("base_model_name_or_path", "is not a string");
    c.base_model = base->get<std::string>();
  }
  s.refuse_the_rest();
  return peft;
}

std::string format_peft_config(const AdapterConfig& c) {
  Json json = Json::object();              // keys sorted, as PEFT writes them
  json["alpha_pattern"] = Json::object();  // the order of patterns counts
  for (const auto& [pattern, alpha] : c.alpha_pattern)
    json["alpha_pattern"][pattern] = plain_number(alpha);
  json["auto_mapping"] = nullptr;
  json["base_model_name_or_path"] = c.base_model;
  json["bias"] = "none";
  json["exclude_modules"] = nullptr;
  if (!c.exclude_modules.empty())
    json["exclude_modules"] =
        c.exclude_regex ? Json(c.exclude_modules.front()) : Json(c.exclude_modules);
  json["fan_in_fan_out"] = false;
  json["inference_mode"] = true;
  json["init_lora_weights"] = true;
  json["layers_pattern"] = nullptr;
  json["layers_to_transform"] = nullptr;
  json["lora_alpha"] = plain_number(c.alpha);
  json["lora_dropout"] = c.dropout;
  json["modules_to_save"] = nullptr;
  json["peft_type"] = "LORA";
  json["r"] = c.rank;
  json["rank_pattern"] = Json::object();
  for (const auto& [pattern, rank] : c.rank_pattern) json["rank_pattern"][pattern] = rank;
  json["revision"] = nullptr;
  json["target_modules"] = c.target_regex ? Json(c.target_modules.front()) : Json(c.target_modules);
  if (!c.target_parameters.empty()) json["target_parameters"] = c.target_parameters;
  json["task_type"] = "CAUSAL_LM";
  json["use_dora"] = false;
  json["use_rslora"] = c.use_rslora;
  // A path need not be UTF-8; JSON must.
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::vector<LinearModule> match_peft_targets(const PeftConfig& peft,
                                             const std::vector<LinearModule>& modules,
                                             const std::string& where,
                                             const std::vector<std::string>& others) {
  const AdapterConfig& c = peft.config;
  std::vector<LinearModule> chosen = match_adapted(c, modules, where, others);
  if (peft.layers_to_transform.empty()) return chosen;
  // PEFT's order of rules: a whole name counts whatever its layer; else the first number behind
  // (one of) the patterns is the layer.
  std::vector<Pattern> patterns;
  if (peft.layers_pattern.empty()) patterns.emplace_back(R"(.*?\.[^.]*\.(?P<idx>\d+)\.)", where);
  for (const std::string& p : peft.layers_pattern)
    patterns.emplace_back("(?:^|.*?\\.)" + p + "\\.(?P<idx>\\d+)\\.", where);
  const auto drops = [&](const LinearModule& m) {
    if (m.parameter) return false;  // of these PEFT leaves none out
    if (std::count(c.target_modules.begin(), c.target_modules.end(), m.name)) return false;
    for (const Pattern& p : patterns)
      if (const auto number = p.group_of_start(m.name, "idx"))
        return !std::count(peft.layers_to_transform.begin(), peft.layers_to_transform.end(),
                           std::stoll(*number));
    return true;
  };
  std::erase_if(chosen, drops);
  if (chosen.empty())
    fail_input(where, "layers_to_transform leaves no module; the model's layers are 0 to " +
                          std::to_string(modules.back().layer));
  return chosen;
}

}  // namespace lorashard
