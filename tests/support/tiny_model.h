// Tiny random models in Hugging Face's layout, for tests.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "checkpoint/file_io.h"
#include "checkpoint/model_config.h"
#include "kernels/tensor.h"

namespace lorashard::test {

struct TinyModelOptions {
  std::string model_type = "llama";  // "llama", "mistral", "qwen2", "qwen3"
  int64_t hidden_size = 48, layers = 2, heads = 6, kv_heads = 3, head_dim = 8;
  int64_t intermediate_size = 80, vocab_size = 96, max_position_embeddings = 128;
  bool tied = false;
  DType dtype = DType::BF16;
  int files = 1;  // > 1: an index with that many shards
  uint64_t seed = 1;
  nlohmann::json settings = nlohmann::json::object();  // further keys of config.json, or other
                                                       // values for the ones above
};

// What was written.
struct TinyModel {
  fs::path dir;
  ModelConfig config;
  struct Tensor {
    DType dtype;
    std::vector<int64_t> shape;
    std::vector<char> bytes;    // as in the file
    std::vector<float> values;  // those of bytes, exactly
  };
  std::map<std::string, Tensor> tensors;
};

// config.json of the model that the options describe.
nlohmann::json tiny_config(const TinyModelOptions& options);

// Writes config.json, model.safetensors (or shards with their index) and two companion files
// (tokenizer_config.json, generation_config.json) into the directory `dir`, which is created.
// Matrices are uniform in ±1/sqrt(cols)·√3, biases small, norm gains near 1.
TinyModel write_tiny_model(const fs::path& dir, const TinyModelOptions& options = {});

}  // namespace lorashard::test
