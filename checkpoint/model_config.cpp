#include "checkpoint/model_config.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "checkpoint/config_settings.h"
#include "checkpoint/json_strict.h"
#include "configs/error.h"

namespace lorashard {
namespace {

using nlohmann::json;

// Where a family's biases come from.
enum class Bias : uint8_t { Never, Always, Setting };

// How sliding windows are written in a family's config.json.
enum class Window : uint8_t {
  None,     // the family has none
  All,      // sliding_window, if not null, holds for every layer
  Flagged,  // use_sliding_window, sliding_window and max_window_layers, or layer_types
};

// What distinguishes one family from another: the defaults that transformers' configuration class
// takes for keys that config.json leaves out, and what its modelling code fixes.
struct Family {
  const char* architecture;
  const char* model_type;
  int64_t default_kv_heads;  // 0: as many as query heads
  int64_t default_head_dim;  // 0: hidden_size / num_attention_heads
  int64_t default_max_positions;
  double default_rms_norm_eps;
  double default_rope_theta;
  bool default_tied;
  Bias qkv_bias, o_bias, mlp_bias;
  bool qk_norm;
  Window window;
  int64_t default_window;  // 0: null
  int64_t default_bos, default_eos;
};

// From transformers 5.23, models/*/configuration_*.py and modeling_*.py.
constexpr Family kFamilies[] = {
    {.architecture = "LlamaForCausalLM",
     .model_type = "llama",
     .default_kv_heads = 0,
     .default_head_dim = 0,
     .default_max_positions = 2048,
     .default_rms_norm_eps = 1e-6,
     .default_rope_theta = 10000,
     .default_tied = false,
     .qkv_bias = Bias::Setting,
     .o_bias = Bias::Setting,
     .mlp_bias = Bias::Setting,
     .qk_norm = false,
     .window = Window::None,
     .default_window = 0,
     .default_bos = 1,
     .default_eos = 2},
    {.architecture = "MistralForCausalLM",
     .model_type = "mistral",
     .default_kv_heads = 8,
     .default_head_dim = 0,
     .default_max_positions = 131072,
     .default_rms_norm_eps = 1e-6,
     .default_rope_theta = 10000,
     .default_tied = false,
     .qkv_bias = Bias::Never,
     .o_bias = Bias::Never,
     .mlp_bias = Bias::Never,
     .qk_norm = false,
     .window = Window::All,
     .default_window = 4096,
     .default_bos = 1,
     .default_eos = 2},
    {.architecture = "Qwen2ForCausalLM",
     .model_type = "qwen2",
     .default_kv_heads = 32,
     .default_head_dim = 0,
     .default_max_positions = 32768,
     .default_rms_norm_eps = 1e-6,
     .default_rope_theta = 10000,
     .default_tied = false,
     .qkv_bias = Bias::Always,
     .o_bias = Bias::Never,
     .mlp_bias = Bias::Never,
     .qk_norm = false,
     .window = Window::Flagged,
     .default_window = 4096,
     .default_bos = -1,
     .default_eos = -1},
    {.architecture = "Qwen3ForCausalLM",
     .model_type = "qwen3",
     .default_kv_heads = 32,
     .default_head_dim = 128,
     .default_max_positions = 32768,
     .default_rms_norm_eps = 1e-6,
     .default_rope_theta = 10000,
     .default_tied = false,
     .qkv_bias = Bias::Setting,
     .o_bias = Bias::Setting,
     .mlp_bias = Bias::Never,
     .qk_norm = true,
     .window = Window::Flagged,
     .default_window = 4096,
     .default_bos = -1,
     .default_eos = -1},
};

// Keys that transformers reads for every family, whose value must be the neutral one, with what
// would be right when it is not. (Others' multipliers, caps and dropouts are not read for these
// families, and pretraining_tp says how GEMMs were cut, not what they compute.)
struct Neutral {
  const char* key;
  double value;  // numbers; false and null are neutral too
  const char* right;
};
constexpr Neutral kNeutralKeys[] = {
    {"attention_dropout", 0, "0 (dropout of attention weights is not supported)"},
    {"partial_rotary_factor", 1, "1 (rotation of a part of each head is not supported)"},
    {"is_encoder_decoder", 0, "false (only decoders are supported)"},
    {"add_cross_attention", 0, "false (only decoders are supported)"},
};

const Family& find_family(Settings& s) {
  const json& architectures = s.get("architectures");
  const std::string type = s.text("model_type", "");
  std::string supported;
  for (const Family& f : kFamilies)
    supported += (supported.empty() ? "" : ", ") + std::string(f.architecture);
  std::string name;
  if (architectures.is_array() && architectures.size() == 1 && architectures[0].is_string()) {
    name = architectures[0].get<std::string>();
  } else if (!architectures.is_null()) {
    s.fail("architectures", "is " + architectures.dump() + "; it must name one of " + supported);
  }
  // A base saved without its head names its own class, Qwen3Model for Qwen3ForCausalLM.
  constexpr std::string_view kBase = "Model", kCausal = "ForCausalLM";
  if (name.ends_with(kBase)) name.replace(name.size() - kBase.size(), kBase.size(), kCausal);
  for (const Family& f : kFamilies) {
    if (name.empty() ? type != f.model_type : name != f.architecture) continue;
    if (!type.empty() && type != f.model_type)
      s.fail("model_type", "is \"" + printable(type) + "\", but architectures says " + name +
                               ", whose model_type is \"" + f.model_type + "\"");
    return f;
  }
  if (name.empty() && type.empty())
    s.fail("architectures", "is missing; it must name one of " + supported);
  s.fail(name.empty() ? "model_type" : "architectures",
         printable(name.empty() ? type : name) + " is not supported; supported are " + supported);
}

Activation parse_activation(Settings& s) {
  const std::string act = s.text("hidden_act", "silu");
  if (act == "silu" || act == "swish") return Activation::SILU;
  if (act == "gelu") return Activation::GELU;
  if (act == "gelu_pytorch_tanh" || act == "gelu_new") return Activation::GELU_TANH;
  s.fail("hidden_act", "\"" + printable(act) +
                           "\" is not supported; supported are silu, gelu, "
                           "gelu_pytorch_tanh and gelu_new");
}

// rope_scaling or rope_parameters with what its absent keys mean filled in, for comparison.
json whole_rope(json rope, double theta) {
  if (!rope.is_object()) return rope;
  if (rope.contains("type")) {
    if (!rope.contains("rope_type")) rope["rope_type"] = rope["type"];
    rope.erase("type");
  }
  if (!rope.contains("rope_type")) rope["rope_type"] = "default";
  if (!rope.contains("rope_theta")) rope["rope_theta"] = theta;
  return rope;
}

// Older files say rope_theta and rope_scaling {type | rope_type, …}; newer ones rope_parameters
// {rope_type, rope_theta, …}. transformers lets rope_scaling win where both stand; here they must
// then mean the same. Keys that transformers does not read for the type are added to `unread`.
RopeConfig parse_rope(Settings& s, const std::string& source, const Family& family,
                      int64_t max_positions, std::vector<std::string>& unread) {
  const json& scaling = s.get("rope_scaling");
  const json& parameters = s.get("rope_parameters");
  const double theta = s.positive("rope_theta", family.default_rope_theta);
  const auto given = [](const json& j) { return !j.is_null() && !j.empty(); };
  if (given(scaling) && given(parameters) &&
      whole_rope(scaling, theta) != whole_rope(parameters, theta))
    s.fail("rope_scaling", "stands beside a different rope_parameters; keep one of the two");
  const char* key = given(parameters) ? "rope_parameters" : "rope_scaling";
  static const json empty = json::object();
  const json& object = given(parameters) ? parameters : given(scaling) ? scaling : empty;
  if (!object.is_object()) s.fail(key, "is not an object");
  Settings r(object, source, std::string(key) + ".");

  RopeConfig rope;
  rope.theta = r.positive("rope_theta", theta);
  if (r.number("partial_rotary_factor", 1) != 1)
    r.fail("partial_rotary_factor", "must be 1 (rotation of a part of each head is not supported)");

  const std::string old_type = r.text("type", "default");
  const std::string type = r.text("rope_type", old_type);
  if (r.has("type") && old_type != type)
    r.fail("type", "is \"" + printable(old_type) + "\", but rope_type is \"" + printable(type) +
                       "\"; keep one of the two");
  std::set<std::string> unused;  // by this type in transformers
  if (type == "default") {
    rope.kind = RopeConfig::Kind::Default;
    unused = {"factor", "original_max_position_embeddings"};
    if (r.has("factor") && r.number("factor", 1) != 1)
      r.fail("factor", "has no meaning for rope_type default; say linear or llama3, or remove it");
  } else if (type == "linear") {
    rope.kind = RopeConfig::Kind::Linear;
    rope.factor = r.positive("factor");
    unused = {"original_max_position_embeddings"};
  } else if (type == "llama3") {
    rope.kind = RopeConfig::Kind::Llama3;
    rope.factor = r.positive("factor");
    rope.low_freq_factor = r.positive("low_freq_factor");
    rope.high_freq_factor = r.positive("high_freq_factor");
    if (rope.high_freq_factor <= rope.low_freq_factor)
      r.fail("high_freq_factor", "must be larger than low_freq_factor");
    const int64_t original =
        r.size("original_max_position_embeddings", max_positions, max_positions);
    // transformers gives the key outside priority.
    rope.original_max_position_embeddings =
        s.size("original_max_position_embeddings", original, original);
  } else {
    r.fail(
        r.has("rope_type") ? "rope_type" : "type",
        "\"" + printable(type) + "\" is not supported; supported are default, linear and llama3");
  }
  for (std::string& key : r.unread(unused)) unread.push_back(std::move(key));
  return rope;
}

// 0 or the sliding window of each layer.
std::vector<int64_t> parse_windows(Settings& s, const Family& family, const ModelConfig& c) {
  std::vector<int64_t> windows(static_cast<size_t>(c.layers), 0);
  int64_t window = 0;
  bool windowed = family.window == Window::All;
  if (family.window != Window::None) window = s.size("sliding_window", family.default_window, 0);
  if (family.window == Window::Flagged) windowed = s.flag("use_sliding_window", false);

  int64_t first = 0;
  if (family.window == Window::Flagged) {
    const json& v = s.get("max_window_layers");
    first = v.is_number_integer() ? v.get<int64_t>() : v.is_null() ? 28 : -1;
    if (first < 0) s.fail("max_window_layers", "is " + v.dump() + "; it must be an integer >= 0");
  }
  const json& types = s.get("layer_types");
  if (!types.is_null()) {
    if (!types.is_array() || types.size() != windows.size())
      s.fail("layer_types", "must be null or list one type for each of the " +
                                std::to_string(c.layers) + " layers");
    for (const json& t : types)
      if (t != "full_attention")
        s.fail("layer_types", t.dump() +
                                  " is not supported; every layer must be "
                                  "\"full_attention\"");
  } else if (windowed) {
    for (int64_t i = first; i < c.layers; ++i) windows[static_cast<size_t>(i)] = window;
  }
  if (family.window == Window::All && !types.is_null())
    std::fill(windows.begin(), windows.end(), window);
  for (const int64_t w : windows) {
    // One that is as long as the longest sequence the model was made for is applied all the same,
    // in case a run goes beyond that.
    if (w != 0 && w < c.max_position_embeddings)
      s.fail("sliding_window",
             std::to_string(w) + (s.has("sliding_window") ? "" : " (the default of this family)") +
                 " is not supported; it must be null (attention over the whole sequence)");
  }
  return windows;
}

DType parse_dtype(Settings& s) {
  const std::string old_name = s.text("torch_dtype", "");
  std::string name = s.text("dtype", old_name);
  const char* key = s.get("dtype").is_null() ? "torch_dtype" : "dtype";
  if (name.rfind("torch.", 0) == 0) name.erase(0, 6);
  if (name.empty() || name == "auto" || name == "bfloat16") return DType::BF16;
  if (name == "float16") return DType::F16;
  if (name == "float32" || name == "float") return DType::F32;
  s.fail(key, "\"" + printable(name) +
                  "\" is not supported; supported are bfloat16, float16 and float32");
}

bool parse_bias(Settings& s, const char* key, Bias bias) {
  // Not read where the architecture fixes its biases; a bias too many or too few shows in the
  // files.
  return bias == Bias::Setting ? s.flag(key, false) : bias == Bias::Always;
}

void parse_token_ids(Settings& s, const Family& family, ModelConfig& c) {
  const auto id = [&](const char* key, const json& v) {
    if (!v.is_number_integer() || v.get<double>() < -1 || v.get<double>() >= 4e9)
      s.fail(key, "is " + v.dump() + "; it must be null or a token id");
    return v.get<int64_t>();
  };
  const json& bos = s.get("bos_token_id");
  int64_t bos_id = !s.has("bos_token_id") ? family.default_bos : -1;
  if (!bos.is_null()) bos_id = id("bos_token_id", bos.is_array() && bos.size() == 1 ? bos[0] : bos);
  if (bos_id >= 0) c.bos_token_id = bos_id;
  const json& eos = s.get("eos_token_id");
  if (eos.is_array()) {
    for (const json& v : eos) c.eos_token_ids.push_back(id("eos_token_id", v));
  } else if (!eos.is_null()) {
    if (const int64_t v = id("eos_token_id", eos); v >= 0) c.eos_token_ids = {v};
  } else if (!s.has("eos_token_id") && family.default_eos >= 0) {
    c.eos_token_ids = {family.default_eos};
  }
}

}  // namespace

ModelConfig parse_model_config(const std::string& json_text, const std::string& source,
                               std::vector<std::string>* notes) {
  const json object = parse_json_strict(json_text, source);
  if (!object.is_object()) fail_input(source, "is not a JSON object");
  Settings s(object, source);
  const Family& family = find_family(s);

  for (const char* key : {"quantization_config", "compression_config"})
    if (const json& v = s.get(key); !v.is_null())
      s.fail(key, "a quantized model is not supported; give the model in bf16, fp16 or fp32");
  if (const json& v = s.get("pruned_heads"); !v.is_null() && !v.empty())
    s.fail("pruned_heads", "pruned heads are not supported; it must be empty");
  for (const Neutral& n : kNeutralKeys) {
    const json& v = s.get(n.key);
    const bool neutral = v.is_null() || (v.is_boolean() && !v.get<bool>()) ||
                         (v.is_number() && v.get<double>() == n.value);
    if (!neutral) s.fail(n.key, "is " + v.dump() + "; it must be " + n.right);
  }

  ModelConfig c;
  std::vector<std::string> unread;
  c.model_type = family.model_type;
  c.architecture = family.architecture;
  c.hidden_size = s.size("hidden_size");
  c.layers = s.size("num_hidden_layers");
  if (c.layers > 4096) s.fail("num_hidden_layers", "is larger than 4096");
  c.heads = s.size("num_attention_heads");
  c.kv_heads = s.size("num_key_value_heads",
                      family.default_kv_heads ? family.default_kv_heads : c.heads, c.heads);
  const int64_t head_dim =
      family.default_head_dim ? family.default_head_dim : c.hidden_size / c.heads;
  c.head_dim = s.size("head_dim", head_dim, head_dim);
  c.intermediate_size = s.size("intermediate_size");
  c.vocab_size = s.size("vocab_size");
  c.max_position_embeddings = s.size("max_position_embeddings", family.default_max_positions);
  c.rms_norm_eps = static_cast<float>(s.positive("rms_norm_eps", family.default_rms_norm_eps));
  c.activation = parse_activation(s);
  c.rope = parse_rope(s, source, family, c.max_position_embeddings, unread);
  c.tied_embeddings = s.flag("tie_word_embeddings", family.default_tied);
  c.qkv_bias = parse_bias(s, "attention_bias", family.qkv_bias);
  c.o_bias = family.o_bias == Bias::Setting && c.qkv_bias;
  c.mlp_bias = parse_bias(s, "mlp_bias", family.mlp_bias);
  c.qk_norm = family.qk_norm;
  c.attention_scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
  c.layer_window = parse_windows(s, family, c);
  c.stored_dtype = parse_dtype(s);
  parse_token_ids(s, family, c);

  if (c.vocab_size < 2) s.fail("vocab_size", "must be at least 2");
  if (c.intermediate_size < 2) s.fail("intermediate_size", "must be at least 2");
  if (c.heads % c.kv_heads != 0)
    s.fail("num_key_value_heads", std::to_string(c.kv_heads) +
                                      " does not divide num_attention_heads " +
                                      std::to_string(c.heads));
  if (!s.has("head_dim") && family.default_head_dim == 0 && c.hidden_size % c.heads != 0)
    s.fail("hidden_size", std::to_string(c.hidden_size) +
                              " is no multiple of num_attention_heads " + std::to_string(c.heads) +
                              "; give head_dim if that is meant");
  if (c.head_dim % 2 != 0)
    s.fail("head_dim", std::to_string(c.head_dim) + " is odd; rotary embedding needs an even one");
  for (std::string& key : s.unread(harmless_keys())) unread.push_back(std::move(key));
  if (notes && !unread.empty()) {
    std::string list;
    for (const std::string& key : unread) list += (list.empty() ? "" : ", ") + key;
    notes->push_back(source + ": transformers does not read these for " + family.architecture +
                     ", nor is anything computed from them: " + list);
  }
  return c;
}

}  // namespace lorashard
