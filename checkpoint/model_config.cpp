#include "checkpoint/model_config.h"

#include <algorithm>
#include <array>
#include <climits>
#include <cmath>
#include <optional>
#include <set>

#include "checkpoint/json_strict.h"
#include "configs/error.h"
#include "parallel/shard.h"

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

// What tells one family from another: the defaults that transformers' configuration class takes
// for keys that config.json leaves out, and what its modelling code fixes.
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

// Keys that change neither the forward pass nor its gradient: provenance, generation settings
// (transformers moves them to generation_config.json), output switches, code for other programs.
const std::set<std::string>& harmless_keys() {
  static const std::set<std::string> keys{
      "_attn_implementation",
      "_attn_implementation_autoset",
      "_commit_hash",
      "_flash_attn_2_enabled",
      "_name_or_path",
      "attn_implementation",
      "auto_map",
      "bad_words_ids",
      "begin_suppress_tokens",
      "chunk_size_feed_forward",
      "custom_pipelines",
      "decoder_start_token_id",
      "diversity_penalty",
      "do_sample",
      "early_stopping",
      "encoder_no_repeat_ngram_size",
      "exponential_decay_length_penalty",
      "finetuning_task",
      "forced_bos_token_id",
      "forced_eos_token_id",
      "id2label",
      "initializer_range",
      "is_decoder",
      "is_llama_config",
      "label2id",
      "length_penalty",
      "max_length",
      "max_new_tokens",
      "max_sequence_length",
      "max_window_layers",
      "min_length",
      "model_max_length",
      "name_or_path",
      "no_repeat_ngram_size",
      "num_beam_groups",
      "num_beams",
      "num_labels",
      "num_return_sequences",
      "output_attentions",
      "output_hidden_states",
      "output_scores",
      "pad_token_id",
      "prefix",
      "problem_type",
      "remove_invalid_values",
      "repetition_penalty",
      "return_dict",
      "return_dict_in_generate",
      "sep_token_id",
      "suppress_tokens",
      "task_specific_params",
      "temperature",
      "tf_legacy_loss",
      "tie_encoder_decoder",
      "tokenizer_class",
      "top_k",
      "top_p",
      "torchscript",
      "transformers.js_config",
      "transformers_version",
      "typical_p",
      "unk_token_id",
      "unsloth_fixed",
      "unsloth_version",
      "use_bfloat16",
      "use_cache",
      "use_return_dict",
  };
  return keys;
}

// Keys whose value must be the neutral one, with what would be right when it is not.
struct Neutral {
  const char* key;
  double value;  // numbers; false and null are neutral too
  const char* right;
};
constexpr Neutral kNeutralKeys[] = {
    {"pretraining_tp", 1, "1 (the products must not be cut into slices)"},
    {"attention_dropout", 0, "0 (dropout of attention weights is not supported)"},
    {"hidden_dropout", 0, "0 (dropout of hidden states is not supported)"},
    {"resid_pdrop", 0, "0 (dropout of hidden states is not supported)"},
    {"partial_rotary_factor", 1, "1 (rotation of a part of each head is not supported)"},
    {"logits_scaling", 1, "1"},
    {"logit_scale", 1, "1"},
    {"residual_multiplier", 1, "1"},
    {"embedding_multiplier", 1, "1"},
    {"attention_multiplier", 1, "1"},
    {"final_logit_softcapping", 0, "null (soft-capped logits are not supported)"},
    {"attn_logit_softcapping", 0, "null (soft-capped attention is not supported)"},
    {"is_encoder_decoder", 0, "false (only decoders are supported)"},
    {"add_cross_attention", 0, "false (only decoders are supported)"},
};

// config.json with every key that was looked at remembered, so that the rest can be judged.
class Settings {
 public:
  Settings(const json& object, std::string source, std::string prefix = "")
      : object_(object), source_(std::move(source)), prefix_(std::move(prefix)) {}

  [[noreturn]] void fail(const std::string& key, const std::string& what) const {
    fail_input(source_, prefix_ + printable(key) + ": " + what);
  }
  // The value, or null if the key is absent.
  const json& get(const std::string& key) {
    static const json null;
    seen_.insert(key);
    const auto it = object_.find(key);
    return it == object_.end() ? null : *it;
  }
  bool has(const std::string& key) const { return object_.contains(key); }

  // A size of at least 1; `absent` if the key is left out, `null` if it is null. Nothing: refused.
  int64_t size(const std::string& key, std::optional<int64_t> absent = {},
               std::optional<int64_t> null = {}) {
    const json& v = get(key);
    if (!has(key) && absent) return *absent;
    if (!has(key)) fail(key, "is missing; it must be a positive integer");
    if (v.is_null() && null) return *null;
    constexpr int64_t kMost = INT32_MAX;
    if (!v.is_number_integer() || v.get<double>() < 1 || v.get<double>() > kMost)
      fail(key, "is " + v.dump() + "; it must be a positive integer below 2^31");
    return v.get<int64_t>();
  }
  double number(const std::string& key, std::optional<double> absent = {}) {
    const json& v = get(key);
    if (v.is_null() && absent) return *absent;
    if (v.is_null()) fail(key, "is missing; it must be a number");
    if (!v.is_number()) fail(key, "is " + v.dump() + "; it must be a number");
    return v.get<double>();
  }
  double positive(const std::string& key, std::optional<double> absent = {}) {
    const double x = number(key, absent);
    if (!(x > 0) || !std::isfinite(x))
      fail(key, "is " + get(key).dump() + "; it must be a positive number");
    return x;
  }
  bool flag(const std::string& key, bool absent) {
    const json& v = get(key);
    if (v.is_null()) return absent;
    if (!v.is_boolean()) fail(key, "is " + v.dump() + "; it must be true or false");
    return v.get<bool>();
  }
  std::string text(const std::string& key, const std::string& absent) {
    const json& v = get(key);
    if (v.is_null()) return absent;
    if (!v.is_string()) fail(key, "is " + v.dump() + "; it must be a string");
    return v.get<std::string>();
  }
  // Refuses every key that was not looked at, is not harmless and does not say "off".
  void refuse_unknown(const std::set<std::string>& harmless) const {
    for (const auto& [key, v] : object_.items()) {
      if (seen_.count(key) || harmless.count(key)) continue;
      const bool empty =
          v.is_string() ? v.get_ref<const std::string&>().empty() : v.is_structured() && v.empty();
      const bool off = empty || v.is_null() || v == json(false) || v == json(0) || v == json(1);
      if (!off)
        fail(key, "is not known, and its value " + printable(v.dump().substr(0, 80)) +
                      " may change the model's mathematics; correct its name, or remove it if it "
                      "does not matter");
    }
  }

 private:
  const json& object_;
  std::string source_, prefix_;
  std::set<std::string> seen_;
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

// Older files say rope_theta and rope_scaling {type | rope_type, …}; newer ones rope_parameters
// {rope_type, rope_theta, …}. transformers lets rope_scaling win where both stand; here they must
// not stand together unless one is empty.
RopeConfig parse_rope(Settings& s, const std::string& source, const Family& family,
                      int64_t max_positions) {
  const json& scaling = s.get("rope_scaling");
  const json& parameters = s.get("rope_parameters");
  const auto given = [](const json& j) { return !j.is_null() && !j.empty(); };
  if (given(scaling) && given(parameters) && scaling != parameters)
    s.fail("rope_scaling", "stands beside a different rope_parameters; keep one of the two");
  const char* key = given(parameters) ? "rope_parameters" : "rope_scaling";
  static const json empty = json::object();
  const json& object = given(parameters) ? parameters : given(scaling) ? scaling : empty;
  if (!object.is_object()) s.fail(key, "is not an object");
  Settings r(object, source, std::string(key) + ".");

  RopeConfig rope;
  const double theta = s.positive("rope_theta", family.default_rope_theta);
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
  r.refuse_unknown(unused);
  return rope;
}

// 0 or the sliding window of each layer.
std::vector<int64_t> parse_windows(Settings& s, const Family& family, const ModelConfig& c) {
  std::vector<int64_t> windows(static_cast<size_t>(c.layers), 0);
  int64_t window = 0;
  bool windowed = family.window == Window::All;
  if (family.window == Window::None) {
    // transformers' class ignores the key; a file that sets it means another model.
    if (const json& v = s.get("sliding_window"); !v.is_null() && v != json(0) && v != json(false))
      s.fail("sliding_window", "is " + v.dump() + "; " + family.architecture +
                                   " has no sliding window, so it must be null");
  } else {
    window = s.size("sliding_window", family.default_window, 0);
  }
  if (family.window == Window::Flagged)
    windowed = s.flag("use_sliding_window", false);
  else if (s.flag("use_sliding_window", false) && family.window == Window::None)
    s.fail("use_sliding_window", "must be false for " + std::string(family.architecture));

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
  for (int64_t& w : windows) {
    if (w >= c.max_position_embeddings) w = 0;  // never reached
    if (w != 0)
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
  const bool fixed = bias == Bias::Always;
  const bool value = s.flag(key, fixed);
  if (bias != Bias::Setting && value != fixed)
    s.fail(key, std::string("must be ") + (fixed ? "true" : "false") +
                    ": this architecture fixes its biases");
  return value;
}

void parse_token_ids(Settings& s, const Family& family, ModelConfig& c) {
  const auto id = [&](const char* key, const json& v) {
    if (!v.is_number_integer() || v.get<double>() < -1 || v.get<double>() >= 4e9)
      s.fail(key, "is " + v.dump() + "; it must be null or a token id");
    return v.get<int64_t>();
  };
  const json& bos = s.get("bos_token_id");
  c.bos_token_id = !s.has("bos_token_id") ? family.default_bos : -1;
  if (!bos.is_null())
    c.bos_token_id = id("bos_token_id", bos.is_array() && bos.size() == 1 ? bos[0] : bos);
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

ModelConfig parse_model_config(const std::string& json_text, const std::string& source) {
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
  c.rope = parse_rope(s, source, family, c.max_position_embeddings);
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
  s.refuse_unknown(harmless_keys());
  return c;
}

std::vector<TensorSpec> model_tensors(const ModelConfig& c) {
  const int64_t h = c.hidden_size, q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim,
                f = c.intermediate_size;
  std::vector<TensorSpec> t;
  const auto matrix = [&](const std::string& name, int64_t rows, int64_t cols, Split split) {
    t.push_back({name + ".weight", rows, cols, false, split});
  };
  const auto vector = [&](const std::string& name, int64_t n, Split split) {
    t.push_back({name, 1, n, true, split});
  };
  const auto linear = [&](const std::string& name, int64_t out, int64_t in, Split split, bool bias,
                          Split bias_split) {
    matrix(name, out, in, split);
    if (bias) vector(name + ".bias", out, bias_split);
  };
  matrix("model.embed_tokens", c.vocab_size, h, Split::VocabRows);
  for (int64_t i = 0; i < c.layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    const std::string attn = layer + "self_attn.", mlp = layer + "mlp.";
    vector(layer + "input_layernorm.weight", h, Split::None);
    linear(attn + "q_proj", q, h, Split::QueryRows, c.qkv_bias, Split::QueryRows);
    linear(attn + "k_proj", kv, h, Split::KvRows, c.qkv_bias, Split::KvRows);
    linear(attn + "v_proj", kv, h, Split::KvRows, c.qkv_bias, Split::KvRows);
    if (c.qk_norm) {
      vector(attn + "q_norm.weight", c.head_dim, Split::None);
      vector(attn + "k_norm.weight", c.head_dim, Split::None);
    }
    linear(attn + "o_proj", h, q, Split::QueryCols, c.o_bias, Split::None);
    vector(layer + "post_attention_layernorm.weight", h, Split::None);
    linear(mlp + "gate_proj", f, h, Split::RowFeatures, c.mlp_bias, Split::RowFeatures);
    linear(mlp + "up_proj", f, h, Split::RowFeatures, c.mlp_bias, Split::RowFeatures);
    linear(mlp + "down_proj", h, f, Split::ColFeatures, c.mlp_bias, Split::None);
  }
  vector("model.norm.weight", h, Split::None);
  if (!c.tied_embeddings) matrix("lm_head", c.vocab_size, h, Split::VocabRows);
  return t;
}

std::vector<LinearModule> linear_modules(const ModelConfig& c) {
  const int64_t h = c.hidden_size, q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim,
                f = c.intermediate_size;
  std::vector<LinearModule> modules;
  for (int i = 0; i < static_cast<int>(c.layers); ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    const auto add = [&](const char* name, int64_t out, int64_t in, Split split) {
      modules.push_back({layer + name, i, out, in, split});
    };
    add("self_attn.q_proj", q, h, Split::QueryRows);
    add("self_attn.k_proj", kv, h, Split::KvRows);
    add("self_attn.v_proj", kv, h, Split::KvRows);
    add("self_attn.o_proj", h, q, Split::QueryCols);
    add("mlp.gate_proj", f, h, Split::RowFeatures);
    add("mlp.up_proj", f, h, Split::RowFeatures);
    add("mlp.down_proj", h, f, Split::ColFeatures);
  }
  return modules;
}

TensorPart tensor_part(const ModelConfig& c, Split split, int64_t rows, int64_t cols, int rank,
                       int ranks) {
  const HeadSplit heads = split_heads(c.heads, c.kv_heads, rank, ranks);
  // A vector (1, n) is cut along its entries whatever its split is called.
  const bool by_columns = rows == 1 || split == Split::QueryCols || split == Split::ColFeatures;
  const int64_t n = by_columns ? cols : rows;
  Range r{0, n};
  switch (split) {
    case Split::None:
      break;
    case Split::QueryRows:
    case Split::QueryCols:
      r = {heads.query.begin * c.head_dim, heads.query.end * c.head_dim};
      break;
    case Split::KvRows:
      r = {heads.kv.begin * c.head_dim, heads.kv.end * c.head_dim};
      break;
    case Split::RowFeatures:
    case Split::VocabRows:
    case Split::ColFeatures:
      r = split_features(n, rank, ranks);
      break;
  }
  if (by_columns) return {0, rows, r.begin, r.end};
  return {r.begin, r.end, 0, cols};
}

}  // namespace lorashard
