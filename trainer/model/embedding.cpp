#include "trainer/model/embedding.h"

#include <algorithm>

#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/float_types.h"
#include "kernels/matmul.h"
#include "kernels/profile.h"

namespace lorashard {
namespace {

// transformers rounds the factor to the type that the model runs in.
float scale_of(const ModelConfig& config, DType type) {
  return type == DType::BF16 ? bf16_to_float(float_to_bf16(config.embedding_scale))
                             : config.embedding_scale;
}

}  // namespace

Embedding::Embedding(Stream& stream, const ModelConfig& config, const ModelWeights& weights,
                     int64_t max_tokens)
    : config_(config), weights_(weights) {
  for (auto& ids : device_) ids = Staged<int32_t>(stream, max_tokens);
}

void Embedding::stage(std::span<const int32_t> ids) {
  const TokenRows& tokens = weights_.embedding_tokens;
  const int32_t padding = int32_t(config_.padding_id.value_or(-1));
  const auto put = [&](size_t i, auto row) {
    host_[i].resize(ids.size());
    std::transform(ids.begin(), ids.end(), host_[i].begin(), row);
    return device_[i].put(host_[i]);
  };
  // Exactly one rank adds a token's own row.
  const auto token_row = [&](int32_t id) {
    return id >= weights_.vocabulary.begin && id < weights_.vocabulary.end ? tokens.find(id) : -1;
  };
  rows_ = trained_ = {};
  if (tokens) {
    rows_.of_table = put(0, [&](int32_t id) { return tokens.find(id) < 0 ? id : -1; });
    rows_.of_tokens = put(1, token_row);
  } else {
    rows_.of_table = device_[0].put(ids);
  }
  trained_ = rows_;
  if (!weights_.trains_embedding() || std::find(ids.begin(), ids.end(), padding) == ids.end())
    return;
  trained_.of_table = put(2, [&](int32_t id) { return id == padding ? -1 : id; });
  if (tokens)
    trained_.of_tokens = put(3, [&](int32_t id) { return id == padding ? -1 : token_row(id); });
}

void Embedding::forward(const LinearContext& c, Matrix x, Matrix u, Matrix scratch) const {
  const int64_t first = weights_.vocabulary.begin;
  const float scale = scale_of(config_, x.dtype);
  frozen_rows(c.stream, x, rows_.of_table, weights_.embedding, first, scale);
  if (const LoraModule* lora = c.values ? weights_.embedding_lora : nullptr) {
    // As PEFT's Embedding: a look-up in B, then A; the scale of the embedding is that of both.
    const ProfileSpan span("lora", "lora");
    embedding_forward(c.stream, u, rows_.of_table, Factors::local_b(*lora, c.values, 0), first, 1);
    matmul_nn(c.stream, x, u, Factors::local_a(*lora, c.values), lora->scaling * scale, 1);
  }
  if (rows_.of_tokens) {
    embedding_forward(c.stream, scratch, rows_.of_tokens, weights_.embedding_tokens.values, 0,
                      scale);
    add(c.stream, x, x, scratch);
  }
}

void Embedding::backward(const LinearContext& c, ConstMatrix dx, ConstMatrix u) const {
  const int64_t first = weights_.vocabulary.begin;
  const float scale = scale_of(config_, dx.dtype);
  if (weights_.embedding_gradient)
    embedding_backward(c.stream, weights_.embedding_gradient, trained_.of_table, dx, first, scale);
  if (const LoraModule* lora = weights_.embedding_lora) {
    const ProfileSpan span("lora", "lora");
    const float scaling = lora->scaling * scale;
    const Matrix t = c.t.block(0, dx.rows, 0, lora->lora_rank);
    matmul_tn(c.stream, Factors::local_a(*lora, c.gradients), u, dx, scaling, 1);
    matmul_nt(c.stream, t, dx, Factors::local_a(*lora, c.values), scaling, 0);
    embedding_backward(c.stream, Factors::local_b(*lora, c.gradients, 0), trained_.of_table, t,
                       first, 1);
  }
  if (rows_.of_tokens && weights_.embedding_tokens.gradient)
    embedding_backward(c.stream, weights_.embedding_tokens.gradient, trained_.of_tokens, dx, 0,
                       scale);
}

}  // namespace lorashard
