#include "trainer/model.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <numeric>

#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/profile.h"
#include "kernels/transfer.h"

namespace lorashard {

// One micro-batch or decoding step under way.
struct Model::Pass {
  int64_t tokens;
  Sequences sequences;
  const int32_t *ids, *positions;  // T, on the stream's device
  DropoutState dropout;
};

Model::Model(Stream& stream, const ModelConfig& config, ModelWeights& weights, Factors* factors,
             Communicator& tensor, const ModelOptions& options)
    : stream_(stream),
      config_(config),
      weights_(weights),
      factors_(factors),
      tensor_(tensor),
      options_(options),
      loss_(stream, config, weights, tensor, options.max_tokens, options.activation_type) {
  plan();
  ids_ = Staged<int32_t>(stream, options.max_tokens);
  positions_ = Staged<int32_t>(stream, options.max_tokens);
  offsets_ = Staged<int32_t>(stream, options.max_tokens + 1);
  kv_offsets_ = Staged<int32_t>(stream, 2);
  row_keys_ = Staged<uint64_t>(stream, options.max_tokens);
  rope_memory_ = Buffer(stream, size_t(options.max_positions * config.head_dim) * sizeof(float));
  rope_table_ = matrix(rope_memory_.data(), options.max_positions, config.head_dim, DType::F32);
  std::vector<float> rope(static_cast<size_t>(options.max_positions * config.head_dim));
  fill_rope_table(matrix(rope.data(), options.max_positions, config.head_dim, DType::F32),
                  config.rope, config.head_dim);
  copy_to_device(stream, rope_table_.data, rope.data(), int64_t(rope_memory_.bytes()));
  for (int64_t l = 0; l < config.layers; ++l) {
    const std::string prefix = "layer." + std::to_string(l) + ".";
    labels_.push_back({prefix + "attention.forward", prefix + "mlp.forward",
                       prefix + "attention.backward", prefix + "mlp.backward", prefix + "forward",
                       prefix + "backward"});
  }
}

void Model::plan() {
  ActivationDims& d = dims_;
  d.tokens = options_.max_tokens;
  d.hidden = config_.hidden_size;
  d.heads = weights_.heads.query.size();
  d.kv_heads = weights_.heads.kv.size();
  d.q_width = d.heads * config_.head_dim;
  d.kv_width = d.kv_heads * config_.head_dim;
  d.features = weights_.features.size();
  d.qk_norm = config_.qk_norm;
  d.backward = options_.training;
  d.dropout = options_.training && options_.dropout > 0;
  d.type = options_.activation_type;
  d.layers = config_.layers;
  d.first_layer = 0;
  while (d.backward && d.first_layer < d.layers &&
         !weights_.blocks[size_t(d.first_layer)].adapted()) {
    ++d.first_layer;
  }
  // Lays out everything in `arena`. The loss works in memory that the layers do not need then.
  const auto lay_out = [&](Arena& arena) {
    activations_ = plan_activations(arena, d, weights_.blocks);
    arena.back_to(activations_.shared_at);
    loss_.plan(arena);
  };
  const auto bytes = [&](int64_t keep_all, int64_t keep_attention) {
    d.keep_all = keep_all;
    d.keep_attention = keep_attention;
    Arena counter;
    lay_out(counter);
    return counter.used();
  };
  const int64_t layers = d.backward ? d.layers - d.first_layer : 0;
  int64_t keep_all = layers, keep_attention = 0;
  if (options_.recompute == Recompute::Mlp) std::swap(keep_all, keep_attention);
  if (options_.recompute == Recompute::Full) keep_all = 0;
  if (options_.recompute == Recompute::Auto && options_.memory_budget > 0) {
    // Gate and up go first: they give the most memory for the least work.
    while (keep_all > 0 && bytes(keep_all, keep_attention) > options_.memory_budget) {
      --keep_all;
      ++keep_attention;
    }
    while (keep_attention > 0 && bytes(0, keep_attention) > options_.memory_budget) {
      --keep_attention;
    }
  }
  memory_ = Buffer();  // before the new one exists
  memory_ = Buffer(stream_, bytes(keep_all, keep_attention));
  Arena arena(memory_.data());
  lay_out(arena);
}

void Model::use_factors(Factors* factors) {
  assert(!options_.training);
  factors_ = factors;
  attach_factors(weights_, config_, factors);
  plan();
}

// The micro-batch as kernels see it.
Model::Pass Model::stage(const MicroBatch& batch, bool training) {
  const int32_t* offsets = offsets_.put(batch.offsets);
  Pass pass{.tokens = int64_t(batch.ids.size()),
            .sequences = {batch.offsets, batch.offsets, offsets, offsets},
            .ids = ids_.put(batch.ids),
            .positions = positions_.put(batch.positions),
            .dropout = {}};
  if (training && options_.dropout > 0) {
    pass.dropout = {options_.dropout, options_.seed, row_keys_.put(batch.row_keys)};
  }
  return pass;
}

Matrix Model::embed(const Pass& pass) {
  const Matrix x = activations_.residual[0].row_range(0, pass.tokens);
  embedding_forward(stream_, x, pass.ids, weights_.embedding, weights_.vocabulary.begin,
                    config_.embedding_scale);
  tensor_.all_reduce_sum(stream_, x, "embedding");
  return x;
}

BlockContext Model::context(const Pass& pass, const LinearContext& linear,
                            const BlockScratch& scratch) const {
  BlockContext c{.linear = linear,
                 .tensor = tensor_,
                 .config = config_,
                 .attention = {},
                 .sequences = pass.sequences,
                 .positions = pass.positions,
                 .rope_table = rope_table_,
                 .scratch = scratch};
  c.attention.heads = dims_.heads;
  c.attention.kv_heads = dims_.kv_heads;
  c.attention.head_dim = config_.head_dim;
  c.attention.group = config_.heads / config_.kv_heads;
  c.attention.group_offset = weights_.heads.query.begin % c.attention.group;
  c.attention.scale = config_.attention_scale;
  return c;
}

// From residual[0] (the embeddings) to the last residual.
void Model::run_layers(const Pass& pass, DecodeState* state) {
  const BlockScratch scratch = first_rows(activations_.scratch, pass.tokens);
  const LinearContext linear{.stream = stream_,
                             .values = factors_ ? factors_->values() : nullptr,
                             .gradients = nullptr,
                             .dropout = pass.dropout,
                             .t = activations_.t,
                             .dropped = activations_.dropped};
  const BlockContext c = context(pass, linear, scratch);
  const auto row = [&](size_t i) { return activations_.residual[i].row_range(0, pass.tokens); };
  for (int64_t l = 0; l < config_.layers; ++l) {
    const int64_t i = std::max<int64_t>(l - dims_.first_layer, 0);
    const BlockActivations acts = first_rows(activations_.blocks[size_t(i)], pass.tokens);
    const ProfileSpan span("layer", labels_[size_t(l)].forward.c_str());
    // Layers below the first adapted one work in place.
    const size_t in = size_t(2 * i);
    const bool in_place = l < dims_.first_layer;
    block_forward(c, weights_.blocks[size_t(l)], labels_[size_t(l)], row(in),
                  row(in_place ? in : in + 1), row(in_place ? in : in + 2), acts,
                  state ? &state->caches[size_t(l)] : nullptr);
  }
}

void Model::clear_loss() { fill_zero(stream_, matrix(loss_.sum(), 1, 2, DType::F32)); }

void Model::forward_backward(const MicroBatch& batch) {
  assert(options_.training && factors_);
  const Pass pass = stage(batch, true);
  const int64_t tokens = pass.tokens;
  embed(pass);
  run_layers(pass, nullptr);

  const Matrix dx = activations_.dx.row_range(0, tokens);
  loss_.forward_backward(activations_.residual.back().row_range(0, tokens), batch.labels, dx);

  const BlockScratch scratch = first_rows(activations_.scratch, tokens);
  const LinearContext linear{.stream = stream_,
                             .values = factors_->values(),
                             .gradients = factors_->gradients(),
                             .dropout = pass.dropout,
                             .t = activations_.t,
                             .dropped = activations_.dropped};
  const BlockContext c = context(pass, linear, scratch);
  for (int64_t l = config_.layers - 1; l >= dims_.first_layer; --l) {
    const auto i = size_t(l - dims_.first_layer);
    const BlockWeights& w = weights_.blocks[size_t(l)];
    const BlockActivations acts = first_rows(activations_.blocks[i], tokens);
    const Matrix x_in = activations_.residual[2 * i].row_range(0, tokens);
    const Matrix x_mid = activations_.residual[2 * i + 1].row_range(0, tokens);
    const ProfileSpan span("layer", labels_[size_t(l)].backward.c_str());
    block_recompute(c, w, x_in, x_mid, acts, activations_.keep[i]);
    block_backward(c, w, labels_[size_t(l)], x_in, x_mid, dx, acts, l == dims_.first_layer);
  }
}

double Model::evaluate(const MicroBatch& batch) {
  if (batch.ids.empty()) return 0;
  const Pass pass = stage(batch, false);
  embed(pass);
  run_layers(pass, nullptr);
  clear_loss();
  loss_.forward_backward(activations_.residual.back().row_range(0, pass.tokens), batch.labels, {});
  return host_copy(stream_, loss_sum(), 1)[0];
}

DecodeState Model::new_sequence(int64_t capacity) {
  DecodeState state;
  const auto lay_out = [&](Arena& arena) {
    state.caches.clear();
    for (int64_t l = 0; l < config_.layers; ++l) {
      KvCache cache;
      cache.k = arena.take(capacity, dims_.kv_width, dims_.type);
      cache.v = arena.take(capacity, dims_.kv_width, dims_.type);
      state.caches.push_back(cache);
    }
  };
  Arena counter;
  lay_out(counter);
  state.memory = Buffer(stream_, counter.used());
  Arena arena(state.memory.data());
  lay_out(arena);
  return state;
}

void Model::decode(DecodeState& state, std::span<const int32_t> tokens, std::span<float> logits) {
  assert(!tokens.empty());
  if (logits_.bytes() == 0) logits_ = Buffer(stream_, logits.size_bytes());
  const Matrix all = matrix(logits_.data(), 1, int64_t(logits.size()), DType::F32);
  while (!tokens.empty()) {
    const auto piece = tokens.first(std::min(tokens.size(), size_t(options_.max_tokens)));
    tokens = tokens.subspan(piece.size());
    const auto n = int32_t(piece.size());
    std::vector<int32_t> positions(piece.size());
    std::iota(positions.begin(), positions.end(), int32_t(state.position));
    const std::array<int32_t, 2> offsets{0, n}, kv_offsets{0, int32_t(state.position) + n};
    const Pass pass{
        .tokens = n,
        .sequences = {offsets, kv_offsets, offsets_.put(offsets), kv_offsets_.put(kv_offsets)},
        .ids = ids_.put(piece),
        .positions = positions_.put(positions),
        .dropout = {}};
    embed(pass);
    run_layers(pass, &state);
    state.position += n;
    if (!tokens.empty()) continue;
    // Each rank's slice in its place, zero elsewhere; the sum is the whole row.
    fill_zero(stream_, all);
    loss_.logits(activations_.residual.back(), n - 1,
                 all.col_range(weights_.vocabulary.begin, weights_.vocabulary.size()));
    tensor_.all_reduce_sum(stream_, all, "logits");
    copy_to_host(stream_, logits.data(), all.data, int64_t(logits.size_bytes()));
  }
}

}  // namespace lorashard
