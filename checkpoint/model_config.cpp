#include "checkpoint/model_config.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "checkpoint/config_attention.h"
#include "checkpoint/config_settings.h"
#include "checkpoint/json_strict.h"
#include "configs/error.h"

namespace lorashard {
namespace {

using nlohmann::json;

// Where a family's biases come from.
enum class Bias : uint8_t { Never, Always, Setting };

// What distinguishes one family from another: the defaults that transformers' configuration class
// takes for keys that config.json leaves out, and what its modelling code fixes.
struct Family {
  const char* architecture;
  const char* model_type;
  // The class of the base without its head; null: "LlamaModel" for "LlamaForCausalLM".
  const char* base_architecture = nullptr;
  // What the family takes for sizes that are left out; 0: they must be there.
  struct Sizes {
    int64_t hidden = 0, layers = 0, heads = 0, intermediate = 0, vocabulary = 0;
  } default_sizes{};
  const char* activation_key = "hidden_act";
  const char* default_activation = "silu";
  int64_t default_kv_heads;  // 0: as many as query heads
  int64_t default_head_dim;  // 0: hidden_size / num_attention_heads
  int64_t default_max_positions;
  double default_rms_norm_eps;
  double default_rope_theta;
  bool default_tied;
  Bias qkv_bias, o_bias, mlp_bias;
  bool qk_norm;
  // Gemma's: gains stored less one, norms behind the sublayers too, embeddings times the root of
  // the hidden size, attention scaled by query_pre_attn_scalar, a second rope in windowed layers,
  // settings that must be off.
  bool gemma = false;
  double default_window_rope_theta = 0;
  Window window;
  int64_t default_window;  // 0: null
  int64_t default_bos, default_eos;
  bool experts = false;  // a mixture of experts in place of some layers' MLP
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
    {.architecture = "Qwen3MoeForCausalLM",
     .model_type = "qwen3_moe",
     .default_sizes =
         {.hidden = 2048, .layers = 24, .heads = 32, .intermediate = 6144, .vocabulary = 151936},
     .default_kv_heads = 4,
     .default_head_dim = 0,
     .default_max_positions = 32768,
     .default_rms_norm_eps = 1e-6,
     .default_rope_theta = 10000,
     .default_tied = false,
     .qkv_bias = Bias::Setting,
     .o_bias = Bias::Setting,
     .mlp_bias = Bias::Never,
     .qk_norm = true,
     .window = Window::FlaggedAll,
     .default_window = 4096,
     .default_bos = -1,
     .default_eos = -1,
     .experts = true},
    {.architecture = "Gemma3ForCausalLM",
     .model_type = "gemma3_text",
     .base_architecture = "Gemma3TextModel",
     .default_sizes =
         {.hidden = 2304, .layers = 26, .heads = 8, .intermediate = 9216, .vocabulary = 262208},
     .activation_key = "hidden_activation",
     .default_activation = "gelu_pytorch_tanh",
     .default_kv_heads = 4,
     .default_head_dim = 256,
     .default_max_positions = 131072,
     .default_rms_norm_eps = 1e-6,
     .default_rope_theta = 1e6,
     .default_tied = true,
     .qkv_bias = Bias::Setting,
     .o_bias = Bias::Setting,
     .mlp_bias = Bias::Never,
     .qk_norm = true,
     .gemma = true,
     .default_window_rope_theta = 1e4,
     .window = Window::Pattern,
     .default_window = 4096,
     .default_bos = 2,
     .default_eos = 1},
};

// Architectures that one may take for one of the above, with what keeps them out.
struct Unsupported {
  const char* prefix;      // of the architecture
  const char* model_type;  // what the model_type begins with
  const char* why;
};
constexpr Unsupported kUnsupported[] = {
    {"Gemma3ForConditionalGeneration", "gemma3",
     "it is Gemma 3 with a vision tower; save its text part alone as Gemma3ForCausalLM "
     "(model_type gemma3_text)"},
    {"Gemma3n", "gemma3n", "its altup, laurel and per-layer embeddings are not supported"},
    {"Gemma4", "gemma4", "its layers are not those of Gemma 3"},
    {"Gemma2", "gemma2", "soft-capping of logits and attention scores is not supported"},
    {"GptOss", "gpt_oss", "attention sinks and its mixture of experts are not supported"},
    {"Qwen3_5", "qwen3_5", "gated DeltaNet layers are not supported"},
    {"Qwen3Next", "qwen3_next", "gated DeltaNet layers are not supported"},
};

// "; its … not supported" for an architecture, or a model_type, that is known and left out.
std::string why_unsupported(const std::string& name, bool is_type) {
  const Unsupported* best = nullptr;
  for (const Unsupported& u : kUnsupported) {
    const std::string_view begins = is_type ? u.model_type : u.prefix;
    if (name.starts_with(begins) &&
        (!best ||
         begins.size() > std::string_view(is_type ? best->model_type : best->prefix).size()))
      best = &u;
  }
  return best ? std::string(": ") + best->why : "";
}

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
  const std::string given = name;
  if (name.ends_with(kBase)) name.replace(name.size() - kBase.size(), kBase.size(), kCausal);
  for (const Family& f : kFamilies)
    if (f.base_architecture && given == f.base_architecture) name = f.architecture;
  for (const Family& f : kFamilies) {
    if (name.empty() ? type != f.model_type : name != f.architecture) continue;
    if (!type.empty() && type != f.model_type)
      s.fail("model_type", "is \"" + printable(type) + "\", but architectures says " + name +
                               ", whose model_type is \"" + f.model_type + "\"");
    return f;
  }
  if (name.empty() && type.empty())
    s.fail("architectures", "is missing; it must name one of " + supported);
  const bool by_type = name.empty();
  s.fail(by_type ? "model_type" : "architectures",
         printable(by_type ? type : given) + " is not supported" +
             why_unsupported(by_type ? type : given, by_type) + "; supported are " + supported);
}

Activation parse_activation(Settings& s, const char* key, const char* absent) {
  const std::string act = s.text(key, absent);
  if (act == "silu" || act == "swish") return Activation::SILU;
  if (act == "gelu") return Activation::GELU;
  if (act == "gelu_pytorch_tanh" || act == "gelu_new") return Activation::GELU_TANH;
  s.fail(key, "\"" + printable(act) +
                  "\" is not supported; supported are silu, gelu, gelu_pytorch_tanh and gelu_new");
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

// The settings of a mixture of experts.
void parse_experts(Settings& s, ModelConfig& c) {
  if (s.flag("output_router_logits", false))
    s.fail("output_router_logits",
           "is true, which adds the router's auxiliary loss; that is not supported, it must be "
           "false");
  s.get("router_aux_loss_coef");  // only of that loss
  // transformers 5 calls it num_local_experts inside, and reads both.
  const int64_t named = s.size("num_experts", 128);
  c.experts = s.size("num_local_experts", named, named);
  if (s.has("num_experts") && c.experts != named)
    s.fail("num_local_experts", "is " + std::to_string(c.experts) + ", but num_experts is " +
                                    std::to_string(named) + "; keep one of the two");
  c.experts_per_token = s.size("num_experts_per_tok", 8);
  if (c.experts_per_token > c.experts)
    s.fail("num_experts_per_tok", std::to_string(c.experts_per_token) +
                                      " is more than the number of experts, " +
                                      std::to_string(c.experts));
  c.expert_size = s.size("moe_intermediate_size", 768);
  if (c.expert_size < 2) s.fail("moe_intermediate_size", "must be at least 2");
  c.normalized_routing = s.flag("norm_topk_prob", false);
  const int64_t step = s.size("decoder_sparse_step", 1);
  for (int64_t l = 0; l < c.layers; ++l) c.expert_layers.push_back((l + 1) % step == 0);
  const json& dense = s.get("mlp_only_layers");
  if (dense.is_null()) return;
  if (!dense.is_array()) s.fail("mlp_only_layers", "is not a list of layer numbers");
  for (const json& layer : dense) {
    if (!layer.is_number_integer())
      s.fail("mlp_only_layers", "holds " + layer.dump() + "; layer numbers were expected");
    const auto l = layer.get<int64_t>();
    if (l >= 0 && l < c.layers) c.expert_layers[size_t(l)] = false;
  }
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

// A size, or what the family takes where it is left out.
int64_t parse_size(Settings& s, const char* key, int64_t absent) {
  return absent ? s.size(key, absent) : s.size(key);
}

// What Gemma 3 has beyond the others.
void parse_gemma(Settings& s, const std::string& source, const Family& family, ModelConfig& c,
                 std::vector<std::string>& unread) {
  for (const char* key : {"attn_logit_softcapping", "final_logit_softcapping"})
    if (const json& v = s.get(key); !v.is_null())
      s.fail(key, "is " + v.dump() + "; it must be null (soft-capping is not supported)");
  if (s.flag("use_bidirectional_attention", false))
    s.fail("use_bidirectional_attention", "must be false (attention is causal)");
  const LayerRopes ropes =
      parse_layer_ropes(s, source, family.default_rope_theta, family.default_window_rope_theta,
                        c.max_position_embeddings, unread);
  c.rope = ropes.full;
  c.window_rope = ropes.sliding;
  c.post_norms = true;
  c.norm_gain_offset = 1;
  c.embedding_scale = float(std::sqrt(double(c.hidden_size)));
  c.attention_scale = float(1 / std::sqrt(s.positive("query_pre_attn_scalar", 256)));
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
  c.hidden_size = parse_size(s, "hidden_size", family.default_sizes.hidden);
  c.layers = parse_size(s, "num_hidden_layers", family.default_sizes.layers);
  if (c.layers > 4096) s.fail("num_hidden_layers", "is larger than 4096");
  c.heads = parse_size(s, "num_attention_heads", family.default_sizes.heads);
  c.kv_heads = s.size("num_key_value_heads",
                      family.default_kv_heads ? family.default_kv_heads : c.heads, c.heads);
  const int64_t head_dim =
      family.default_head_dim ? family.default_head_dim : c.hidden_size / c.heads;
  c.head_dim = s.size("head_dim", head_dim, head_dim);
  c.intermediate_size = parse_size(s, "intermediate_size", family.default_sizes.intermediate);
  if (family.experts) parse_experts(s, c);
  c.vocab_size = parse_size(s, "vocab_size", family.default_sizes.vocabulary);
  c.max_position_embeddings = s.size("max_position_embeddings", family.default_max_positions);
  c.rms_norm_eps = static_cast<float>(s.positive("rms_norm_eps", family.default_rms_norm_eps));
  c.activation = parse_activation(s, family.activation_key, family.default_activation);
  c.tied_embeddings = s.flag("tie_word_embeddings", family.default_tied);
  c.qkv_bias = parse_bias(s, "attention_bias", family.qkv_bias);
  c.o_bias = family.o_bias == Bias::Setting && c.qkv_bias;
  c.mlp_bias = parse_bias(s, "mlp_bias", family.mlp_bias);
  c.qk_norm = family.qk_norm;
  if (family.gemma) {
    parse_gemma(s, source, family, c, unread);
  } else {
    c.rope = parse_rope(s, source, family.default_rope_theta, c.max_position_embeddings, unread);
    c.attention_scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
  }
  c.layer_window = parse_windows(s, family.window, family.default_window, c.layers);
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
