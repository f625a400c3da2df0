// The tensors and linear layers of a model, and which part of each a tensor-parallel rank holds.
#include <cassert>
#include <utility>

#include "checkpoint/model_config.h"

namespace lorashard {

std::vector<LayerModule> layer_modules(const ModelConfig& c, int64_t) {
  const int64_t h = c.hidden_size, q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim,
                f = c.intermediate_size;
  std::vector<LayerModule> modules;
  InputGroup last{};
  const auto linear = [&](const char* name, InputGroup group, int64_t out, int64_t in, Split split,
                          bool bias) {
    assert(last <= group);  // a group's modules are neighbours
    last = group;
    modules.push_back({LayerModule::Kind::Linear, name, out, in, split, group, bias, {}, c.conv1d});
  };
  const auto norm = [&](const char* name, NormRole role, int64_t size) {
    modules.push_back(
        {LayerModule::Kind::Norm, name, 1, size, Split::None, {}, c.norm == NormKind::Layer, role});
  };
  if (c.fused_qkv) {  // GPT-2
    norm("ln_1", NormRole::AttentionInput, h);
    linear("attn.c_attn", InputGroup::QKV, q + 2 * kv, h, Split::QkvRows, c.qkv_bias);
    linear("attn.c_proj", InputGroup::O, h, q, Split::QueryCols, c.o_bias);
    norm("ln_2", NormRole::MlpInput, h);
    linear("mlp.c_fc", InputGroup::GateUp, f, h, Split::RowFeatures, c.mlp_bias);
    linear("mlp.c_proj", InputGroup::Down, h, f, Split::ColFeatures, c.mlp_bias);
    return modules;
  }
  norm("input_layernorm", NormRole::AttentionInput, h);
  linear("self_attn.q_proj", InputGroup::QKV, q, h, Split::QueryRows, c.qkv_bias);
  linear("self_attn.k_proj", InputGroup::QKV, kv, h, Split::KvRows, c.qkv_bias);
  linear("self_attn.v_proj", InputGroup::QKV, kv, h, Split::KvRows, c.qkv_bias);
  if (c.qk_norm) {
    norm("self_attn.q_norm", NormRole::Query, c.head_dim);
    norm("self_attn.k_norm", NormRole::Key, c.head_dim);
  }
  linear("self_attn.o_proj", InputGroup::O, h, q, Split::QueryCols, c.o_bias);
  if (c.post_norms) {
    norm("post_attention_layernorm", NormRole::AttentionOutput, h);
    norm("pre_feedforward_layernorm", NormRole::MlpInput, h);
  } else {
    norm("post_attention_layernorm", NormRole::MlpInput, h);
  }
  linear("mlp.gate_proj", InputGroup::GateUp, f, h, Split::RowFeatures, c.mlp_bias);
  linear("mlp.up_proj", InputGroup::GateUp, f, h, Split::RowFeatures, c.mlp_bias);
  linear("mlp.down_proj", InputGroup::Down, h, f, Split::ColFeatures, c.mlp_bias);
  if (c.post_norms) norm("post_feedforward_layernorm", NormRole::MlpOutput, h);
  return modules;
}

std::string outer_name(const ModelConfig& c, const char* name) {
  return std::string(c.names.root) + "." + name;
}

std::string layer_prefix(const ModelConfig& c, int64_t layer) {
  return outer_name(c, c.names.layers) + "." + std::to_string(layer) + ".";
}

bool is_row_parallel(Split split) {
  return split == Split::QueryCols || split == Split::ColFeatures;
}

std::vector<TensorSpec> model_tensors(const ModelConfig& c) {
  std::vector<TensorSpec> t;
  const auto matrix = [&](const std::string& name, int64_t rows, int64_t cols, Split split,
                          bool transposed = false) {
    if (transposed) std::swap(rows, cols);
    t.push_back({name + ".weight", rows, cols, false, split, transposed});
  };
  const auto vector = [&](const std::string& name, int64_t n, Split split) {
    t.push_back({name, 1, n, true, split});
  };
  matrix(outer_name(c, c.names.embedding), c.vocab_size, c.hidden_size, Split::VocabRows);
  if (c.names.positions)
    matrix(outer_name(c, c.names.positions), c.max_position_embeddings, c.hidden_size, Split::None);
  for (int64_t l = 0; l < c.layers; ++l) {
    for (const LayerModule& m : layer_modules(c, l)) {
      const std::string name = layer_prefix(c, l) + m.name;
      if (m.kind == LayerModule::Kind::Norm) {
        vector(name + ".weight", m.in_features, Split::None);
        if (m.bias) vector(name + ".bias", m.in_features, Split::None);
        continue;
      }
      matrix(name, m.out_features, m.in_features, m.split, m.transposed);
      if (m.bias)
        vector(name + ".bias", m.out_features, is_row_parallel(m.split) ? Split::None : m.split);
    }
  }
  const std::string final_norm = outer_name(c, c.names.final_norm);
  vector(final_norm + ".weight", c.hidden_size, Split::None);
  if (c.norm == NormKind::Layer) vector(final_norm + ".bias", c.hidden_size, Split::None);
  if (!c.tied_embeddings) matrix("lm_head", c.vocab_size, c.hidden_size, Split::VocabRows);
  return t;
}

std::vector<LinearModule> linear_modules(const ModelConfig& c) {
  std::vector<LinearModule> linear;
  for (int64_t l = 0; l < c.layers; ++l) {
    for (const LayerModule& m : layer_modules(c, l)) {
      if (m.kind == LayerModule::Kind::Linear)
        linear.push_back({layer_prefix(c, l) + m.name, int(l), m.out_features, m.in_features,
                          m.split, m.group, m.transposed});
    }
  }
  return linear;
}

std::vector<LinearModule> lora_modules(const ModelConfig& c) {
  std::vector<LinearModule> modules = linear_modules(c);
  modules.push_back(
      {"lm_head", -1, c.vocab_size, c.hidden_size, Split::VocabRows, {}, false, ModuleRole::Head});
  modules.push_back({outer_name(c, c.names.embedding),
                     -1,
                     c.vocab_size,
                     c.hidden_size,
                     Split::VocabRows,
                     {},
                     false,
                     ModuleRole::Embedding});
  return modules;
}

std::string stored_tensor(const ModelConfig& c, const std::string& tensor) {
  return c.tied_embeddings && tensor == "lm_head.weight"
             ? outer_name(c, c.names.embedding) + ".weight"
             : tensor;
}

// PEFT's TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.
std::vector<std::string> default_targets(const ModelConfig& c) {
  if (c.fused_qkv) return {"c_attn"};
  return {"q_proj", "v_proj"};
}

namespace {

std::vector<std::string> gpt2_other_modules(const ModelConfig& c) {
  std::vector<std::string> names = {"transformer", "transformer.wte", "transformer.wpe",
                                    "transformer.drop", "transformer.h"};
  for (int64_t l = 0; l < c.layers; ++l) {
    const std::string prefix = layer_prefix(c, l);
    names.push_back(prefix.substr(0, prefix.size() - 1));
    for (const char* name : {"ln_1", "attn", "attn.attn_dropout", "attn.resid_dropout", "ln_2",
                             "mlp", "mlp.act", "mlp.dropout"})
      names.push_back(prefix + name);
  }
  names.insert(names.end(), {"transformer.ln_f", "lm_head"});
  return names;
}

}  // namespace

std::vector<std::string> other_modules(const ModelConfig& c) {
  if (c.fused_qkv) return gpt2_other_modules(c);
  std::vector<std::string> names = {"model", "model.embed_tokens", "model.layers"};
  for (int64_t l = 0; l < c.layers; ++l) {
    const std::string prefix = layer_prefix(c, l);
    names.push_back(prefix.substr(0, prefix.size() - 1));
    for (const char* name : {"self_attn", "mlp", "mlp.act_fn"}) names.push_back(prefix + name);
    for (const LayerModule& m : layer_modules(c, l)) {
      if (m.kind == LayerModule::Kind::Norm) names.push_back(prefix + m.name);
    }
  }
  for (const char* name : {"model.norm", "model.rotary_emb", "lm_head"}) names.push_back(name);
  return names;
}

std::vector<Range> split_ranges(const ModelConfig& c, Split split, int64_t n, int rank, int ranks) {
  const HeadSplit heads = split_heads(c.heads, c.kv_heads, rank, ranks);
  const auto columns = [&](Range of, int64_t first) {
    return Range{first + of.begin * c.head_dim, first + of.end * c.head_dim};
  };
  switch (split) {
    case Split::None:
      break;
    case Split::QueryRows:
    case Split::QueryCols:
      return {columns(heads.query, 0)};
    case Split::KvRows:
      return {columns(heads.kv, 0)};
    case Split::QkvRows: {
      const int64_t k = c.heads * c.head_dim, v = k + c.kv_heads * c.head_dim;
      return {columns(heads.query, 0), columns(heads.kv, k), columns(heads.kv, v)};
    }
    case Split::RowFeatures:
    case Split::VocabRows:
    case Split::ColFeatures:
      return {split_features(n, rank, ranks)};
  }
  return {{0, n}};
}

std::vector<TensorPart> tensor_parts(const ModelConfig& c, const TensorSpec& spec, int rank,
                                     int ranks) {
  // A vector (1, n) is cut along its entries whatever its split is called.
  const bool by_columns = spec.rows == 1 || is_row_parallel(spec.split) != spec.transposed;
  std::vector<TensorPart> parts;
  for (const Range r :
       split_ranges(c, spec.split, by_columns ? spec.cols : spec.rows, rank, ranks)) {
    parts.push_back(by_columns ? TensorPart{0, spec.rows, r.begin, r.end}
                               : TensorPart{r.begin, r.end, 0, spec.cols});
  }
  return parts;
}

TensorPart tensor_part(const ModelConfig& c, Split split, int64_t rows, int64_t cols, int rank,
                       int ranks) {
  const auto parts = tensor_parts(c, {"", rows, cols, rows == 1, split}, rank, ranks);
  assert(parts.size() == 1);
  return parts[0];
}

}  // namespace lorashard
