// The tensors and linear layers of a model, and which part of each a tensor-parallel rank holds.
#include <cassert>

#include "checkpoint/expert_names.h"
#include "checkpoint/model_config.h"
#include "parallel/shard.h"

namespace lorashard {

std::vector<LayerModule> layer_modules(const ModelConfig& c, int64_t layer) {
  const int64_t h = c.hidden_size, q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim,
                f = c.intermediate_size;
  std::vector<LayerModule> modules;
  InputGroup last{};
  const auto linear = [&](std::string name, InputGroup group, int64_t out, int64_t in, Split split,
                          bool bias, int64_t expert = -1) {
    assert(last <= group);  // a group's modules are neighbours
    last = group;
    modules.push_back(
        {LayerModule::Kind::Linear, std::move(name), out, in, split, group, bias, {}, expert});
  };
  const auto norm = [&](const char* name, NormRole role, int64_t size) {
    modules.push_back({LayerModule::Kind::Norm, name, 1, size, Split::None, {}, false, role});
  };
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
  if (c.has_experts(layer)) {
    const auto of_experts = [&](const char* name, InputGroup group, int64_t out, int64_t in,
                                Split split, int64_t e) {
      linear("mlp.experts." + std::to_string(e) + name, group, out, in, split, false, e);
    };
    const int64_t width = c.expert_size;
    linear("mlp.gate", InputGroup::Router, c.experts, h, Split::None, false);
    for (int64_t e = 0; e < c.experts; ++e) {
      of_experts(".gate_proj", InputGroup::GateUp, width, h, Split::RowFeatures, e);
      of_experts(".up_proj", InputGroup::GateUp, width, h, Split::RowFeatures, e);
    }
    for (int64_t e = 0; e < c.experts; ++e)
      of_experts(".down_proj", InputGroup::Down, h, width, Split::ColFeatures, e);
    return modules;
  }
  linear("mlp.gate_proj", InputGroup::GateUp, f, h, Split::RowFeatures, c.mlp_bias);
  linear("mlp.up_proj", InputGroup::GateUp, f, h, Split::RowFeatures, c.mlp_bias);
  linear("mlp.down_proj", InputGroup::Down, h, f, Split::ColFeatures, c.mlp_bias);
  if (c.post_norms) norm("post_feedforward_layernorm", NormRole::MlpOutput, h);
  return modules;
}

std::string layer_prefix(int64_t layer) { return "model.layers." + std::to_string(layer) + "."; }

bool is_row_parallel(Split split) {
  return split == Split::QueryCols || split == Split::ColFeatures;
}

std::vector<TensorSpec> model_tensors(const ModelConfig& c) {
  std::vector<TensorSpec> t;
  const auto matrix = [&](const std::string& name, int64_t rows, int64_t cols, Split split) {
    t.push_back({name + ".weight", rows, cols, false, split});
  };
  const auto vector = [&](const std::string& name, int64_t n, Split split) {
    t.push_back({name, 1, n, true, split});
  };
  matrix("model.embed_tokens", c.vocab_size, c.hidden_size, Split::VocabRows);
  for (int64_t l = 0; l < c.layers; ++l) {
    for (const LayerModule& m : layer_modules(c, l)) {
      const std::string name = layer_prefix(l) + m.name;
      if (m.kind == LayerModule::Kind::Norm) {
        vector(name + ".weight", m.in_features, Split::None);
        continue;
      }
      matrix(name, m.out_features, m.in_features, m.split);
      if (m.bias)
        vector(name + ".bias", m.out_features, is_row_parallel(m.split) ? Split::None : m.split);
    }
  }
  vector("model.norm.weight", c.hidden_size, Split::None);
  if (!c.tied_embeddings) matrix("lm_head", c.vocab_size, c.hidden_size, Split::VocabRows);
  return t;
}

std::vector<LinearModule> linear_modules(const ModelConfig& c) {
  std::vector<LinearModule> linear;
  for (int64_t l = 0; l < c.layers; ++l) {
    for (const LayerModule& m : layer_modules(c, l)) {
      if (m.kind != LayerModule::Kind::Linear) continue;
      LinearModule module{
          layer_prefix(l) + m.name, int(l), m.out_features, m.in_features, m.split, m.group};
      if (m.group == InputGroup::Router || m.expert >= 0) {
        // As PEFT sees it: a parameter, the experts' one for all of them, gate above up.
        module.parameter = true;
        module.name = parameter_name(module.name);
        if (m.expert >= 0) module.experts = c.experts;
        if (m.group == InputGroup::GateUp) module.out_features *= 2;
        if (!linear.empty() && linear.back().name == module.name) continue;
      }
      linear.push_back(std::move(module));
    }
  }
  return linear;
}

std::vector<std::string> other_modules(const ModelConfig& c) {
  std::vector<std::string> names = {"model", "model.embed_tokens", "model.layers"};
  for (int64_t l = 0; l < c.layers; ++l) {
    const std::string prefix = layer_prefix(l);
    names.push_back(prefix.substr(0, prefix.size() - 1));
    for (const char* name : {"self_attn", "mlp"}) names.push_back(prefix + name);
    if (c.has_experts(l)) {
      for (const char* name : {"mlp.experts", "mlp.experts.act_fn", "mlp.gate"})
        names.push_back(prefix + name);
    } else {
      names.push_back(prefix + "mlp.act_fn");
    }
    for (const LayerModule& m : layer_modules(c, l)) {
      if (m.kind == LayerModule::Kind::Norm) names.push_back(prefix + m.name);
    }
  }
  for (const char* name : {"model.norm", "model.rotary_emb", "lm_head"}) names.push_back(name);
  return names;
}

TensorPart tensor_part(const ModelConfig& c, Split split, int64_t rows, int64_t cols, int rank,
                       int ranks) {
  const HeadSplit heads = split_heads(c.heads, c.kv_heads, rank, ranks);
  // A vector (1, n) is cut along its entries whatever its split is called.
  const bool by_columns = rows == 1 || is_row_parallel(split);
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
