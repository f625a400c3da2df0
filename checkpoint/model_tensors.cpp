// The tensors and linear layers of a model, and which part of each a tensor-parallel rank holds.
#include "checkpoint/model_config.h"
#include "parallel/shard.h"

namespace lorashard {

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

std::vector<std::string> other_modules(const ModelConfig& c) {
  std::vector<std::string> names = {"model", "model.embed_tokens", "model.layers"};
  for (int64_t i = 0; i < c.layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i);
    names.push_back(layer);
    for (const char* name :
         {".self_attn", ".mlp", ".mlp.act_fn", ".input_layernorm", ".post_attention_layernorm"})
      names.push_back(layer + name);
    if (c.qk_norm)
      for (const char* name : {".self_attn.q_norm", ".self_attn.k_norm"})
        names.push_back(layer + name);
  }
  for (const char* name : {"model.norm", "model.rotary_emb", "lm_head"}) names.push_back(name);
  return names;
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
