#include "tests/support/tiny_model.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>

#include "checkpoint/safetensors.h"

namespace lorashard::test {
namespace {

using nlohmann::json;

uint32_t bits_of(float x) {
  uint32_t u;
  std::memcpy(&u, &x, sizeof u);
  return u;
}
float float_of(uint32_t u) {
  float x;
  std::memcpy(&x, &u, sizeof x);
  return x;
}

// Appends x, cut to the dtype, to the bytes and what is left of it to the values. Cutting bits off
// keeps the arithmetic here obviously right; F16 takes values of normal size only.
void append(TinyModel::Tensor& t, float x) {
  const auto put = [&](const void* p, size_t n) {
    const char* c = static_cast<const char*>(p);
    t.bytes.insert(t.bytes.end(), c, c + n);
  };
  const uint32_t u = bits_of(x);
  if (t.dtype == DType::F32) {
    put(&u, 4);
    t.values.push_back(x);
  } else if (t.dtype == DType::BF16) {
    const auto half = static_cast<uint16_t>(u >> 16);
    put(&half, 2);
    t.values.push_back(float_of(u & 0xffff0000u));
  } else {
    const int exponent = static_cast<int>(u >> 23 & 255) - 127 + 15;
    const uint32_t kept = exponent < 1 ? 0 : u & 0xffffe000u;
    const auto half = static_cast<uint16_t>(
        kept == 0 ? 0
                  : (u >> 16 & 0x8000) | static_cast<uint32_t>(exponent) << 10 | (u >> 13 & 0x3ff));
    put(&half, 2);
    t.values.push_back(float_of(kept));
  }
}

TinyModel::Tensor random_tensor(const TensorSpec& spec, DType dtype, std::mt19937_64& generator) {
  TinyModel::Tensor t{dtype, {}, {}, {}};
  t.shape = spec.vector ? std::vector{spec.cols} : std::vector{spec.rows, spec.cols};
  const bool gain = spec.vector && spec.name.find("norm") != std::string::npos;
  const float scale = spec.vector ? 0.1f : std::sqrt(3.0f / static_cast<float>(spec.cols));
  for (int64_t i = 0; i < spec.rows * spec.cols; ++i) {
    // Equal on every machine, unlike std::uniform_real_distribution.
    const float unit = static_cast<float>(generator() >> 40) / static_cast<float>(1 << 23) - 1.0f;
    append(t, (gain ? 1.0f : 0.0f) + scale * unit);
  }
  return t;
}

void write_text(const fs::path& path, const std::string& text) {
  OutputFile out(path);
  out.write(text);
  out.close();
}

}  // namespace

json tiny_config(const TinyModelOptions& o) {
  static const std::map<std::string, const char*> architectures{
      {"llama", "LlamaForCausalLM"},
      {"mistral", "MistralForCausalLM"},
      {"qwen2", "Qwen2ForCausalLM"},
      {"qwen3", "Qwen3ForCausalLM"},
      {"gemma3_text", "Gemma3ForCausalLM"}};
  json c{{"architectures", {architectures.at(o.model_type)}},
         {"model_type", o.model_type},
         {"hidden_size", o.hidden_size},
         {"num_hidden_layers", o.layers},
         {"num_attention_heads", o.heads},
         {"num_key_value_heads", o.kv_heads},
         {"head_dim", o.head_dim},
         {"intermediate_size", o.intermediate_size},
         {"vocab_size", o.vocab_size},
         {"max_position_embeddings", o.max_position_embeddings},
         {"hidden_act", "silu"},
         {"rms_norm_eps", 1e-6},
         {"rope_theta", 10000.0},
         {"tie_word_embeddings", o.tied},
         {"bos_token_id", 1},
         {"eos_token_id", 2},
         {"torch_dtype", o.dtype == DType::BF16  ? "bfloat16"
                         : o.dtype == DType::F16 ? "float16"
                                                 : "float32"}};
  if (o.model_type == "mistral") c["sliding_window"] = nullptr;
  if (o.model_type == "gemma3_text") {
    c.erase("hidden_act");
    c["sliding_window"] = 5;
    c["sliding_window_pattern"] = 2;
  }
  c.update(o.settings);
  return c;
}

TinyModel write_tiny_model(const fs::path& dir, const TinyModelOptions& o) {
  TinyModel model;
  model.dir = dir;
  fs::create_directories(dir);
  const std::string text = tiny_config(o).dump(2) + "\n";
  model.config = parse_model_config(text, (dir / "config.json").string());
  write_text(dir / "config.json", text);
  write_text(dir / "generation_config.json", "{\"eos_token_id\": 2}\n");
  write_text(dir / "tokenizer_config.json", "{\"add_bos_token\": true}\n");

  std::mt19937_64 generator(o.seed);
  const std::vector<TensorSpec> specs = model_tensors(model.config);
  for (const TensorSpec& spec : specs)
    model.tensors[spec.name] = random_tensor(spec, o.dtype, generator);

  json weight_map = json::object();
  const size_t files = static_cast<size_t>(o.files);
  for (size_t f = 0; f < files; ++f) {
    char name[64] = "model.safetensors";
    if (files > 1)
      std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", f + 1, files);
    std::vector<SafetensorsWriter::Entry> entries;
    for (size_t i = f * specs.size() / files; i < (f + 1) * specs.size() / files; ++i) {
      entries.push_back({specs[i].name, o.dtype, model.tensors[specs[i].name].shape});
      weight_map[specs[i].name] = name;
    }
    SafetensorsWriter out(dir / name, entries);
    for (const auto& e : entries) {
      const auto& bytes = model.tensors[e.name].bytes;
      out.write(bytes.data(), bytes.size());
    }
    out.close();
  }
  if (files > 1)
    write_text(dir / "model.safetensors.index.json",
               json{{"metadata", json::object()}, {"weight_map", weight_map}}.dump(2) + "\n");
  return model;
}

}  // namespace lorashard::test
