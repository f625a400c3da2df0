#include "checkpoint/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "tests/support/expect_error.h"
#include "tests/support/tiny_model.h"

namespace lorashard::test {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

json tiny(const std::string& type) {
  TinyModelOptions o;
  o.model_type = type;
  return tiny_config(o);
}
ModelConfig parse(const json& j) { return parse_model_config(j.dump(), "m/config.json"); }

// Setting key to value must be refused with an error naming the file, the key and `parts`.
void refuse(const std::string& type, const std::string& key, const json& value,
            std::vector<std::string> parts = {}) {
  json c = tiny(type);
  c[key] = value;
  parts.push_back("m/config.json: " + key);
  SCOPED_TRACE(type + " " + key + " " + value.dump());
  expect_error(kExitInput, parts, [&] { parse(c); });
}
std::vector<std::string> notes(const json& j) {
  std::vector<std::string> notes;
  parse_model_config(j.dump(), "m/config.json", &notes);
  return notes;
}
// Setting key to value must be noted by name, and change nothing.
void note(const std::string& type, const std::string& key, const json& value) {
  json c = tiny(type);
  c[key] = value;
  EXPECT_THAT(notes(c), ElementsAre(HasSubstr(key))) << type << " " << key << " " << value;
}
void accept(const std::string& type, const std::string& key, const json& value) {
  json c = tiny(type);
  c[key] = value;
  EXPECT_NO_THROW(parse(c)) << type << " " << key << " " << value;
}

// Llama 3.2 1B as published (older form), and as transformers 5 saves it (newer form).
const char* const kLlamaOld = R"({"architectures":["LlamaForCausalLM"],"attention_bias":false,
  "attention_dropout":0.0,"bos_token_id":128000,"eos_token_id":[128001,128008,128009],"head_dim":64,
  "hidden_act":"silu","hidden_size":2048,"initializer_range":0.02,"intermediate_size":8192,
  "max_position_embeddings":131072,"mlp_bias":false,"model_type":"llama","num_attention_heads":32,
  "num_hidden_layers":16,"num_key_value_heads":8,"pretraining_tp":1,"rms_norm_eps":1e-05,
  "rope_scaling":{"factor":32.0,"high_freq_factor":4.0,"low_freq_factor":1.0,
  "original_max_position_embeddings":8192,"rope_type":"llama3"},"rope_theta":500000.0,
  "tie_word_embeddings":true,"torch_dtype":"bfloat16","transformers_version":"4.45.0.dev0",
  "use_cache":true,"vocab_size":128256})";

TEST(ModelConfig, OlderAndNewerFormsSayTheSame) {
  json old = json::parse(kLlamaOld), now = old;
  now["rope_parameters"] = old["rope_scaling"];
  now["rope_parameters"]["rope_theta"] = 500000.0;
  now["dtype"] = "bfloat16";
  for (const char* key : {"rope_scaling", "rope_theta", "torch_dtype"}) now.erase(key);
  for (const json& j : {old, now}) {
    const ModelConfig c = parse(j);
    EXPECT_EQ(c.model_type, "llama");
    EXPECT_EQ(c.rope.kind, RopeConfig::Kind::Llama3);
    EXPECT_EQ(c.rope.theta, 500000);
    EXPECT_EQ(c.rope.factor, 32);
    EXPECT_EQ(c.rope.low_freq_factor, 1);
    EXPECT_EQ(c.rope.high_freq_factor, 4);
    EXPECT_EQ(c.rope.original_max_position_embeddings, 8192);
    EXPECT_EQ(c.eos_token_ids, (std::vector<int64_t>{128001, 128008, 128009}));
    EXPECT_EQ(c.bos_token_id, 128000);
    EXPECT_TRUE(c.tied_embeddings);
    EXPECT_FLOAT_EQ(c.norm_eps, 1e-5f);
    EXPECT_FLOAT_EQ(c.attention_scale, 0.125f);
    EXPECT_EQ(c.stored_dtype, DType::BF16);
    EXPECT_EQ(c.layer_window, std::vector<int64_t>(16, 0));
  }
}

// What transformers 5.23 takes for keys that config.json leaves out.
TEST(ModelConfig, DefaultsAreTheFamilys) {
  const auto bare = [](const std::string& type) {
    json c = tiny(type);
    for (const char* key :
         {"num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta", "tie_word_embeddings",
          "hidden_act", "max_position_embeddings", "bos_token_id", "eos_token_id"})
      c.erase(key);
    c["num_attention_heads"] = 32;
    c["hidden_size"] = 640;
    return parse(c);
  };
  EXPECT_EQ(bare("llama").kv_heads, 32);
  EXPECT_EQ(bare("llama").max_position_embeddings, 2048);
  EXPECT_EQ(bare("mistral").kv_heads, 8);
  EXPECT_EQ(bare("qwen2").kv_heads, 32);
  EXPECT_EQ(bare("qwen2").head_dim, 20);
  EXPECT_EQ(bare("qwen3").head_dim, 128);
  EXPECT_EQ(bare("llama").eos_token_ids, std::vector<int64_t>{2});
  EXPECT_EQ(bare("qwen3").eos_token_ids, std::vector<int64_t>{});
  EXPECT_EQ(bare("qwen3").bos_token_id, std::nullopt);
  for (const char* type : {"llama", "mistral", "qwen2", "qwen3"}) {
    const ModelConfig c = bare(type);
    EXPECT_FLOAT_EQ(c.norm_eps, 1e-6f);
    EXPECT_EQ(c.rope.theta, 10000);
    EXPECT_FALSE(c.tied_embeddings);
    EXPECT_EQ(c.activation, Activation::SILU);
    EXPECT_EQ(c.qkv_bias, std::string(type) == "qwen2");
    EXPECT_FALSE(c.o_bias);
    EXPECT_EQ(c.qk_norm, std::string(type) == "qwen3");
  }
  json c = tiny("mistral");
  c["num_key_value_heads"] = nullptr;
  EXPECT_EQ(parse(c).kv_heads, 6);
}

TEST(ModelConfig, BiasesAsTheArchitectureHasThem) {
  json c = tiny("llama");
  c["attention_bias"] = true;
  c["mlp_bias"] = true;
  EXPECT_TRUE(parse(c).qkv_bias && parse(c).o_bias && parse(c).mlp_bias);
  c = tiny("qwen3");
  c["attention_bias"] = true;
  EXPECT_TRUE(parse(c).qkv_bias && parse(c).o_bias);
  EXPECT_FALSE(parse(c).mlp_bias);
  // Not read where the architecture fixes its biases.
  c = tiny("qwen2");
  c["attention_bias"] = false;
  EXPECT_TRUE(parse(c).qkv_bias);
  note("mistral", "attention_bias", true);
  note("qwen3", "mlp_bias", true);
}

TEST(ModelConfig, RopeForms) {
  json c = tiny("llama");
  c["rope_scaling"] = {{"type", "linear"}, {"factor", 4.0}};
  EXPECT_EQ(parse(c).rope.kind, RopeConfig::Kind::Linear);
  EXPECT_EQ(parse(c).rope.factor, 4);
  c["rope_scaling"] = {{"rope_type", "llama3"},
                       {"factor", 8.0},
                       {"low_freq_factor", 1.0},
                       {"high_freq_factor", 4.0}};
  EXPECT_EQ(parse(c).rope.original_max_position_embeddings, 128);  // of the model, as transformers
  c = tiny("llama");
  c["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 777.0}};  // wins over rope_theta
  EXPECT_EQ(parse(c).rope.theta, 777);
  accept("llama", "rope_scaling", nullptr);
  for (const char* type : {"dynamic", "yarn", "longrope", "su", "mrope", "proportional"}) {
    refuse("llama", "rope_scaling", {{"rope_type", type}, {"factor", 2.0}},
           {".rope_type", type, "default, linear and llama3"});
    refuse("llama", "rope_scaling", {{"type", type}, {"factor", 2.0}}, {".type", type});
    refuse("llama", "rope_parameters", {{"rope_type", type}, {"factor", 2.0}}, {type});
  }
  refuse("llama", "rope_scaling", {{"type", "linear"}}, {".factor", "missing"});
  refuse("llama", "rope_scaling", {{"type", "linear"}, {"factor", 0}}, {".factor", "positive"});
  refuse("llama", "rope_scaling", {{"type", "linear"}, {"factor", "2"}}, {".factor", "number"});
  refuse("llama", "rope_scaling", {{"rope_type", "llama3"}, {"factor", 8.0}}, {"low_freq_factor"});
  refuse("llama", "rope_scaling", {{"factor", 8.0}}, {".factor", "no meaning"});
  c = tiny("llama");
  c["rope_scaling"] = {{"type", "linear"}, {"factor", 2}, {"attention_factor", 0.5}};
  EXPECT_THAT(notes(c), ElementsAre(HasSubstr("rope_scaling.attention_factor")));
  refuse("llama", "rope_scaling", 7, {"not an object"});
  refuse("llama", "rope_parameters", {{"full_attention", {{"rope_theta", 1e4}}}},
         {"full_attention", "by layer"});
  refuse("llama", "rope_parameters", {{"rope_type", "default"}, {"partial_rotary_factor", 0.5}},
         {"partial_rotary_factor"});
  refuse("llama", "rope_theta", -1, {"positive"});
}

TEST(ModelConfig, SlidingWindows) {
  using Windows = std::vector<int64_t>;
  accept("mistral", "sliding_window", nullptr);
  json c = tiny("mistral");
  c["sliding_window"] = 64;
  EXPECT_EQ(parse(c).layer_window, (Windows{64, 64}));
  c.erase("sliding_window");
  EXPECT_EQ(parse(c).layer_window, (Windows{4096, 4096}));
  refuse("mistral", "sliding_window", 0, {"positive"});
  refuse("mistral", "sliding_window", "64", {"positive"});
  for (const char* type : {"qwen2", "qwen3"}) {
    c = tiny(type);
    c["sliding_window"] = 64;
    c["use_sliding_window"] = false;
    EXPECT_EQ(parse(c).layer_window, (Windows{0, 0}));
    c["layer_types"] = {"full_attention", "sliding_attention"};
    expect_error(kExitInput, {"layer_types", "use_sliding_window"}, [&] { parse(c); });
    c["use_sliding_window"] = true;
    EXPECT_EQ(parse(c).layer_window, (Windows{0, 64}));
    c["layer_types"] = {"sliding_attention", "full_attention"};  // comes before max_window_layers
    c["max_window_layers"] = 1;
    EXPECT_EQ(parse(c).layer_window, (Windows{64, 0}));
    c.erase("layer_types");
    EXPECT_EQ(parse(c).layer_window, (Windows{0, 64}));
    c["max_window_layers"] = 0;
    EXPECT_EQ(parse(c).layer_window, (Windows{64, 64}));
    c.erase("max_window_layers");  // 28
    EXPECT_EQ(parse(c).layer_window, (Windows{0, 0}));
    c["max_window_layers"] = 0;
    c["sliding_window"] = nullptr;
    EXPECT_EQ(parse(c).layer_window, (Windows{0, 0}));
  }
  accept("qwen3", "layer_types", {"full_attention", "full_attention"});
  refuse("qwen3", "layer_types", {"full_attention", "sliding_attention"}, {"sliding_attention"});
  refuse("qwen3", "layer_types", {"full_attention", "linear_attention"}, {"linear_attention"});
  refuse("qwen3", "layer_types", {"full_attention"}, {"2 layers"});
  refuse("llama", "layer_types", {"full_attention", "sliding_attention"}, {"no window"});
  note("llama", "sliding_window", 64);
  note("mistral", "use_sliding_window", true);
  note("mistral", "layer_types", {"full_attention", "sliding_attention"});
}

// What transformers 5.23 makes of Gemma 3's keys.
TEST(ModelConfig, Gemma3) {
  using Windows = std::vector<int64_t>;
  json c = tiny("gemma3_text");
  ModelConfig m = parse(c);
  EXPECT_EQ(m.layer_window, (Windows{5, 0}));
  EXPECT_EQ(m.activation, Activation::GELU_TANH);
  EXPECT_TRUE(m.post_norms && m.qk_norm);
  EXPECT_FALSE(m.qkv_bias || m.o_bias);
  EXPECT_EQ(m.norm_gain_offset, 1);
  EXPECT_FLOAT_EQ(m.embedding_scale, std::sqrt(48.0f));
  EXPECT_FLOAT_EQ(m.attention_scale, 1 / 16.0f);
  EXPECT_EQ(m.rope.theta, 10000);  // of the file
  EXPECT_EQ(m.window_rope->theta, 10000);
  c["query_pre_attn_scalar"] = 100;
  EXPECT_FLOAT_EQ(parse(c).attention_scale, 0.1f);
  c["layer_types"] = {"full_attention", "sliding_attention"};
  EXPECT_EQ(parse(c).layer_window, (Windows{0, 5}));

  // The older form of rope: scaling is of the full layers alone. The newer one says both.
  c["rope_theta"] = 5e5;
  c["rope_local_base_freq"] = 777;
  c["rope_scaling"] = {{"rope_type", "linear"}, {"factor", 8.0}};
  json now = c;
  for (const char* key : {"rope_theta", "rope_local_base_freq", "rope_scaling"}) now.erase(key);
  now["rope_parameters"] = {
      {"full_attention", {{"rope_type", "linear"}, {"factor", 8.0}, {"rope_theta", 5e5}}},
      {"sliding_attention", {{"rope_type", "default"}, {"rope_theta", 777}}}};
  for (const json& j : {c, now}) {
    m = parse(j);
    EXPECT_EQ(m.rope.kind, RopeConfig::Kind::Linear);
    EXPECT_EQ(m.rope.factor, 8);
    EXPECT_EQ(m.rope.theta, 5e5);
    EXPECT_EQ(m.window_rope->kind, RopeConfig::Kind::Default);
    EXPECT_EQ(m.window_rope->theta, 777);
    EXPECT_THAT(notes(j), ElementsAre());
  }
  now["rope_scaling"] = c["rope_scaling"];
  EXPECT_NO_THROW(parse(now));
  now["rope_scaling"]["factor"] = 4;
  expect_error(kExitInput, {"rope_scaling", "different rope_parameters"}, [&] { parse(now); });
  now["rope_scaling"] = {{"type", "linear"}, {"factor", 8.0}};
  expect_error(kExitInput, {"rope_scaling", "say rope_type"}, [&] { parse(now); });
  now.erase("rope_scaling");
  now["rope_parameters"].erase("sliding_attention");
  EXPECT_EQ(parse(now).window_rope->theta, 10000);

  // What it takes for keys that are left out.
  m = parse({{"model_type", "gemma3_text"}});
  EXPECT_EQ(m.hidden_size, 2304);
  EXPECT_EQ(m.layers, 26);
  EXPECT_EQ(m.heads, 8);
  EXPECT_EQ(m.kv_heads, 4);
  EXPECT_EQ(m.head_dim, 256);
  EXPECT_EQ(m.intermediate_size, 9216);
  EXPECT_EQ(m.vocab_size, 262208);
  EXPECT_EQ(m.max_position_embeddings, 131072);
  EXPECT_EQ(m.rope.theta, 1e6);
  EXPECT_EQ(m.layer_window[4], 4096);
  EXPECT_EQ(m.layer_window[5], 0);
  EXPECT_TRUE(m.tied_embeddings);
  EXPECT_EQ(m.bos_token_id, 2);
  EXPECT_EQ(m.eos_token_ids, std::vector<int64_t>{1});
}

TEST(ModelConfig, Gemma3Refusals) {
  const auto refuse_gemma = [](const char* key, const json& value,
                               std::vector<std::string> parts = {}) {
    refuse("gemma3_text", key, value, std::move(parts));
  };
  refuse_gemma("attn_logit_softcapping", 50.0, {"null"});
  refuse_gemma("final_logit_softcapping", 30.0, {"null"});
  refuse_gemma("use_bidirectional_attention", true, {"false"});
  refuse_gemma("sliding_window", nullptr, {"null"});
  refuse_gemma("sliding_window_pattern", 0, {"positive"});
  refuse_gemma("hidden_activation", "relu", {"relu"});
  refuse_gemma("query_pre_attn_scalar", 0, {"positive"});
  refuse_gemma("rope_local_base_freq", -1, {"positive"});
  refuse_gemma("rope_parameters", {{"rope_type", "default"}, {"rope_theta", 1e4}},
               {"full_attention and sliding_attention"});
  refuse_gemma("rope_parameters", {{"sliding_attention", {{"rope_type", "yarn"}}}},
               {"sliding_attention.rope_type", "yarn"});
  refuse_gemma("rope_parameters", {{"full_attention", 7}}, {"not an object"});
  refuse_gemma("layer_types", {"full_attention", "chunked_attention"}, {"chunked_attention"});
  json c = tiny("gemma3_text");
  c.erase("sliding_window_pattern");
  c["_sliding_window_pattern"] = 2;
  expect_error(kExitInput, {"_sliding_window_pattern"}, [&] { parse(c); });
  note("gemma3_text", "hidden_act", "silu");
}

// Models that one may take for a supported one say what keeps them out.
TEST(ModelConfig, RelativesOfSupportedFamilies) {
  for (const auto& [architecture, why] : std::vector<std::pair<const char*, const char*>>{
           {"Gemma3ForConditionalGeneration", "text part alone"},
           {"Gemma2ForCausalLM", "soft-capping"},
           {"Gemma3nForConditionalGeneration", "altup"},
           {"Gemma4ForConditionalGeneration", "Gemma 3"},
           {"Qwen3_5ForCausalLM", "DeltaNet"},
           {"Qwen3NextForCausalLM", "DeltaNet"},
           {"GptOssForCausalLM", "sinks"}})
    refuse("llama", "architectures", {architecture}, {architecture, why, "LlamaForCausalLM"});
  for (const auto& [type, why] :
       std::vector<std::pair<const char*, const char*>>{{"gemma3", "text part alone"},
                                                        {"gemma4_text", "Gemma 3"},
                                                        {"qwen3_5_text", "DeltaNet"},
                                                        {"gpt_oss", "sinks"},
                                                        {"gemma2", "soft-capping"}}) {
    json c = tiny("llama");
    c.erase("architectures");
    c["model_type"] = type;
    expect_error(kExitInput, {"model_type", type, why}, [&] { parse(c); });
  }
  json c = tiny("gemma3_text");
  c["architectures"] = {"Gemma3TextModel"};
  EXPECT_EQ(parse(c).architecture, "Gemma3ForCausalLM");
}

TEST(ModelConfig, BothFormsOfRopeMustMeanTheSame) {
  json c = tiny("llama");
  c["rope_theta"] = 777.0;
  c["rope_scaling"] = {{"type", "linear"}, {"factor", 2}};
  c["rope_parameters"] = {{"rope_type", "linear"}, {"factor", 2.0}, {"rope_theta", 777}};
  EXPECT_EQ(parse(c).rope.factor, 2);
  EXPECT_EQ(parse(c).rope.theta, 777);
  c["rope_parameters"]["rope_theta"] = 778;
  expect_error(kExitInput, {"rope_scaling", "different rope_parameters"}, [&] { parse(c); });
  c["rope_parameters"]["rope_theta"] = 777;
  c["rope_parameters"]["factor"] = 4;
  expect_error(kExitInput, {"rope_scaling", "different rope_parameters"}, [&] { parse(c); });
}

TEST(ModelConfig, WhatChangesTheMathematicsIsRefusedByName) {
  refuse("llama", "hidden_act", "relu", {"relu", "silu"});
  refuse("llama", "attention_dropout", 0.1, {"must be 0"});
  refuse("llama", "partial_rotary_factor", 0.5);
  refuse("llama", "quantization_config", {{"quant_method", "gptq"}}, {"quantized"});
  refuse("llama", "is_encoder_decoder", true);
  refuse("llama", "pruned_heads", {{"0", {1}}});
  for (const char* act : {"gelu", "gelu_pytorch_tanh", "gelu_new", "swish"})
    accept("llama", "hidden_act", act);
}

// transformers 5.23's classes of these families read none of these.
TEST(ModelConfig, WhatTransformersDoesNotReadIsNoted) {
  for (const auto& [key, value] :
       std::vector<std::pair<const char*, json>>{{"pretraining_tp", 2},
                                                 {"logits_scaling", 8.0},
                                                 {"residual_multiplier", 0.22},
                                                 {"final_logit_softcapping", 30.0},
                                                 {"hidden_dropout", 0.1},
                                                 {"rope_interleaved", true},
                                                 {"_model_name_or_path", "a/b"},
                                                 {"license", "mit"},
                                                 {"language", {"en"}},
                                                 {"classifier_dropout", 0.1},
                                                 {"hiden_size", 64}})
    note("llama", key, value);
  json c = tiny("qwen3");
  c["license"] = "mit";
  c["base_model_revision"] = "main";
  EXPECT_THAT(notes(c), ElementsAre(AllOf(HasSubstr("m/config.json"), HasSubstr("license"),
                                          HasSubstr("base_model_revision"))));
}

TEST(ModelConfig, HarmlessKeysPass) {
  json c = tiny("llama");
  c.update(json::parse(R"({"_name_or_path":"x/y","use_cache":true,"initializer_range":0.041,
    "is_llama_config":true,"rope_interleaved":false,"pad_token_id":2,"rope_scaling":null,
    "transformers.js_config":{"dtype":"q4"},"transformers_version":"4.42.3","use_mrope":false,
    "max_window_layers":28,"auto_map":{"AutoModel":"m.M"},"pretraining_tp":1,"temperature":0.6,
    "id2label":{"0":"a"},"some_future_switch":false,"another":null,"scale":1.0,"note":""})"));
  EXPECT_THAT(notes(c), ElementsAre());
}

TEST(ModelConfig, ArchitecturesAndTypes) {
  refuse("llama", "architectures", {"GptOssForCausalLM"},
         {"GptOssForCausalLM", "Qwen3ForCausalLM"});
  refuse("llama", "architectures", {"LlamaForSequenceClassification"});
  refuse("llama", "architectures", json::array());
  refuse("llama", "architectures", "LlamaForCausalLM");
  refuse("llama", "model_type", "qwen2", {"LlamaForCausalLM"});
  json c = tiny("llama");
  c["architectures"] = {"LlamaModel"};
  EXPECT_EQ(parse(c).architecture, "LlamaForCausalLM");
  c.erase("architectures");
  EXPECT_EQ(parse(c).architecture, "LlamaForCausalLM");
  c.erase("model_type");
  expect_error(kExitInput, {"architectures", "missing"}, [&] { parse(c); });
}

TEST(ModelConfig, SizesAreChecked) {
  for (const char* key :
       {"hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim", "intermediate_size", "vocab_size", "max_position_embeddings"})
    for (const json& bad :
         {json(0), json(-1), json(2.5), json("64"), json(true), json(1e30), json(4294967296)})
      refuse("llama", key, bad);
  for (const char* key : {"hidden_size", "num_hidden_layers", "num_attention_heads",
                          "intermediate_size", "vocab_size"}) {
    json c = tiny("llama");
    c.erase(key);
    expect_error(kExitInput, {key, "is missing"}, [&] { parse(c); });
  }
  refuse("llama", "num_key_value_heads", 4, {"does not divide"});
  refuse("llama", "head_dim", 7, {"odd"});
  refuse("llama", "rms_norm_eps", 0);
  refuse("llama", "rms_norm_eps", "1e-5");
  refuse("llama", "tie_word_embeddings", "yes");
  refuse("llama", "torch_dtype", "float8_e4m3fn");
  refuse("llama", "eos_token_id", "2");
  refuse("llama", "num_hidden_layers", 2000000000, {"4096"});
  json c = tiny("llama");
  c.erase("head_dim");
  c["hidden_size"] = 50;
  expect_error(kExitInput, {"hidden_size", "no multiple"}, [&] { parse(c); });
}

json gpt2() {
  return json::parse(R"({"model_type":"gpt2","architectures":["GPT2LMHeadModel"],"n_embd":48,
    "n_layer":2,"n_head":6,"n_positions":40,"vocab_size":301,"n_inner":null,
    "embd_pdrop":0,"attn_pdrop":0.0,"resid_pdrop":0})");
}

TEST(ModelConfig, Gpt2HasKeysAndNamesOfItsOwn) {
  json c = gpt2();
  ModelConfig m = parse(c);
  EXPECT_EQ(m.intermediate_size, 192);
  EXPECT_EQ(m.kv_heads, 6);
  EXPECT_EQ(m.activation, Activation::GELU_TANH);
  EXPECT_FLOAT_EQ(m.norm_eps, 1e-5f);
  EXPECT_TRUE(m.tied_embeddings && m.qkv_bias && m.o_bias && m.mlp_bias);
  EXPECT_FLOAT_EQ(m.attention_scale, 1 / std::sqrt(8.0f));
  EXPECT_EQ(linear_modules(m)[4].name, "transformer.h.1.attn.c_attn");
  EXPECT_EQ(default_targets(m), std::vector<std::string>{"c_attn"});
  EXPECT_THAT(notes(c), ElementsAre());
  c.erase("resid_pdrop");  // 0.1 then
  EXPECT_THAT(notes(c), ElementsAre(HasSubstr("resid_pdrop 0.1")));
  c["architectures"] = {"GPT2Model"};
  EXPECT_EQ(parse(c).architecture, "GPT2LMHeadModel");
  c["scale_attn_weights"] = false;
  c["hidden_size"] = 48;  // transformers takes the common name too
  EXPECT_EQ(parse(c).attention_scale, 1);
  const auto refused = [&](const char* key, const json& value) {
    json bad = c;
    bad[key] = value;
    SCOPED_TRACE(key);
    expect_error(kExitInput, {std::string("m/config.json: ") + key}, [&] { parse(bad); });
  };
  refused("hidden_size", 64);
  refused("activation_function", "tanh");
  refused("add_cross_attention", true);
  refused("attn_pdrop", 1.5);
  c.erase("hidden_size");
  refused("n_embd", 47);
}

TEST(ModelConfig, TextThatIsNoConfig) {
  const auto bad = [](const std::string& text, const std::string& part) {
    expect_error(kExitInput, {"m/config.json: ", part},
                 [&] { parse_model_config(text, "m/config.json"); });
  };
  bad("", "not valid JSON");
  bad("{\n  \"hidden_size\": 64,,\n}", "line 2");
  bad("[]", "not a JSON object");
  bad("{\"hidden_size\": 64, \"hidden_size\": 65}", "\"hidden_size\" is given twice");
}

TEST(ModelConfig, TensorsAndModules) {
  const ModelConfig llama = parse(tiny("llama"));
  const auto tensors = model_tensors(llama);
  EXPECT_EQ(tensors.size(), 3u + 2 * 9);
  EXPECT_EQ(tensors.front().name, "model.embed_tokens.weight");
  EXPECT_EQ(tensors.back().name, "lm_head.weight");
  EXPECT_EQ(model_tensors(parse(tiny("qwen2"))).size(), 3u + 2 * 12);
  EXPECT_EQ(model_tensors(parse(tiny("qwen3"))).size(), 3u + 2 * 11);
  EXPECT_EQ(model_tensors(parse(tiny("gemma3_text"))).size(), 3u + 2 * 13);
  const auto modules = linear_modules(llama);
  ASSERT_EQ(modules.size(), 14u);
  EXPECT_EQ(modules[9].name, "model.layers.1.self_attn.v_proj");
  EXPECT_EQ(modules[9].layer, 1);
  EXPECT_EQ(modules[9].out_features, 24);
  for (const LinearModule& m : modules) {  // each stands in the tensor list with the same shape
    bool found = false;
    for (const TensorSpec& t : tensors)
      found = found || (t.name == m.name + ".weight" && t.rows == m.out_features &&
                        t.cols == m.in_features && t.split == m.split);
    EXPECT_TRUE(found) << m.name;
  }
}

// Parts of all ranks cover each tensor; only key/value heads and replicated tensors overlap.
TEST(ModelConfig, PartsCoverEveryTensor) {
  for (const char* type : {"llama", "qwen2", "qwen3", "gemma3_text", "gpt2"})
    for (int ranks = 1; ranks <= 6; ++ranks) {
      const ModelConfig c = parse(std::string(type) == "gpt2" ? gpt2() : tiny(type));
      for (const TensorSpec& t : model_tensors(c)) {
        std::vector<int> count(static_cast<size_t>(t.rows * t.cols), 0);
        for (int rank = 0; rank < ranks; ++rank) {
          for (const TensorPart& p : tensor_parts(c, t, rank, ranks)) {
            ASSERT_TRUE(0 <= p.row_begin && p.row_begin <= p.row_end && p.row_end <= t.rows &&
                        0 <= p.col_begin && p.col_begin <= p.col_end && p.col_end <= t.cols);
            for (int64_t i = p.row_begin; i < p.row_end; ++i)
              for (int64_t j = p.col_begin; j < p.col_end; ++j)
                ++count[static_cast<size_t>(i * t.cols + j)];
          }
        }
        const std::set<int> seen(count.begin(), count.end());
        if (t.split == Split::None)
          EXPECT_EQ(seen, std::set<int>{ranks}) << t.name;
        else if (t.split == Split::KvRows)
          EXPECT_GE(*seen.begin(), 1) << t.name;
        else
          EXPECT_EQ(seen, std::set<int>{1}) << t.name << " at " << ranks;
      }
    }
}

}  // namespace
}  // namespace lorashard::test
