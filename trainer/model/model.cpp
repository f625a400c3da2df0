#include "trainer/model/model.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cstdlib>
#include <numeric>
#include <set>

#include "kernels/elementwise.h"
#include "kernels/float_types.h"
#include "kernels/profile.h"
#include "kernels/transfer.h"
#include "parallel/tensor_region.h"

namespace lorashard {

namespace {

// Where to cut a micro-batch in two parts of whole sequences: the sequence that starts nearest to
// the middle. 0: it cannot be cut.
size_t middle_sequence(std::span<const int32_t> offsets) {
  const int32_t tokens = offsets.back();
  size_t best = 0;
  for (size_t s = 1; s + 1 < offsets.size(); ++s) {
    if (offsets[s] == 0 || offsets[s] == tokens) continue;
    if (best == 0 || std::abs(2 * offsets[s] - tokens) < std::abs(2 * offsets[best] - tokens)) {
      best = s;
    }
  }
  return best;
}

}  // namespace

Model::Model(Stream& stream, const ModelConfig& config, ModelWeights& weights, Factors* factors,
             float* gradients, Communicator& tensor, const ModelOptions& options)
    : stream_(stream),
      config_(config),
      weights_(weights),
      factors_(factors),
      gradients_(gradients),
      tensor_(tensor),
      options_(options),
      loss_(stream, config, weights, tensor, options.max_tokens, options.activation_type) {
  ids_ = Staged<int32_t>(stream, options.max_tokens);
  positions_ = Staged<int32_t>(stream, options.max_tokens);
  for (auto& offsets : offsets_) offsets = Staged<int32_t>(stream, options.max_tokens + 1);
  kv_offsets_ = Staged<int32_t>(stream, 2);
  row_keys_ = Staged<uint64_t>(stream, options.max_tokens);
  make_rope_tables();
  for (int64_t l = 0; l < config.layers; ++l) {
    for (const char* name : {"attention", "mlp"}) {
      const std::string label = fmt::format("layer.{}.{}", l, name);
      labels_.push_back({label + ".forward", label + ".backward"});
    }
  }
  plan();
}

void Model::make_rope_tables() {
  const int64_t rows = options_.max_positions, d = config_.head_dim;
  const int64_t tables = config_.window_rope ? 2 : 1;
  rope_memory_ = Buffer(stream_, size_t(tables * rows * d) * sizeof(float));
  const Matrix all = matrix(rope_memory_.data(), tables * rows, d, DType::F32);
  rope_table_ = all.row_range(0, rows);
  window_rope_table_ = all.row_range((tables - 1) * rows, rows);
  if (stream_.recording()) return;
  std::vector<float> values(size_t(tables * rows * d));
  const Matrix host = matrix(values.data(), tables * rows, d, DType::F32);
  fill_rope_table(host.row_range(0, rows), config_.rope, d);
  if (config_.window_rope) fill_rope_table(host.row_range(rows, rows), *config_.window_rope, d);
  copy_to_device(stream_, all.data, values.data(), int64_t(rope_memory_.bytes()));
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
  d.experts = config_.experts;
  d.experts_per_token = config_.experts_per_token;
  d.expert_features = split_features(config_.expert_size, tensor_.rank(), tensor_.size()).size();
  d.qk_norm = config_.qk_norm;
  d.post_norms = config_.post_norms;
  d.backward = gradients_ != nullptr;
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
    layer_bytes_ = arena.used();
    arena.back_to(activations_.shared_at);
    loss_.plan(arena);
  };
  const auto bytes = [&](KeptLayers kept) {
    d.kept = kept;
    Arena counter;
    lay_out(counter);
    return counter.used();
  };
  size_t budget = options_.memory_budget;
  if (d.backward) {
    // Scratch comes first, in memory that was free when the budget was made. Its size does not
    // depend on what is kept, so that the addresses of any layout serve.
    d.kept = {};
    alignas(64) static char nothing[64];
    Arena arena(nothing);
    lay_out(arena);
    const size_t before = stream_.scratch_bytes();
    for (const AttentionShape& shape : attention_shapes()) {
      prepare_attention(stream_, dims_.type, shape, full_sequences(), options_.max_positions);
    }
    stream_.reserve_for([&] { forward_backward(largest_micro_batch()); });
    budget -= std::min(budget, stream_.scratch_bytes() - before);
  }
  const KeptLayers kept =
      kept_layers(d.backward ? d.layers - d.first_layer : 0, options_.recompute,
                  [&](KeptLayers k) { return options_.memory_budget == 0 || bytes(k) <= budget; });
  memory_ = Buffer();  // before the new one exists
  memory_ = Buffer(stream_, bytes(kept));
  Arena arena(memory_.data());
  lay_out(arena);
}

// Every sequence and every chunk of logits as long as it can be.
MicroBatch Model::largest_micro_batch() const {
  MicroBatch batch;
  const auto tokens = size_t(options_.max_tokens);
  batch.ids.assign(tokens, 0);
  batch.positions.assign(tokens, 0);
  batch.row_keys.assign(tokens, 0);
  batch.labels.assign(tokens, -100);
  std::fill_n(batch.labels.begin(), std::min(options_.max_tokens, loss_.chunk_rows()), 0);
  for (int64_t t = 0; t < options_.max_tokens; t += options_.max_positions) {
    batch.offsets.push_back(int32_t(t));
  }
  batch.offsets.push_back(int32_t(tokens));
  return batch;
}

void Model::use_factors(Factors* factors) {
  assert(!gradients_);
  factors_ = factors;
  attach_factors(weights_, factors);
  plan();
}

AttentionShape Model::attention_shape() const {
  AttentionShape shape;
  shape.heads = dims_.heads;
  shape.kv_heads = dims_.kv_heads;
  shape.head_dim = config_.head_dim;
  shape.group = config_.heads / config_.kv_heads;
  shape.group_offset = weights_.heads.query.begin % shape.group;
  shape.scale = config_.attention_scale;
  return shape;
}

// One of each window that layers have.
std::vector<AttentionShape> Model::attention_shapes() const {
  std::set<int64_t> windows;
  for (const BlockWeights& b : weights_.blocks) windows.insert(b.window);
  std::vector<AttentionShape> shapes;
  for (const int64_t window : windows) shapes.emplace_back(attention_shape()).window = window;
  return shapes;
}

// Full sequences that attention sees at once. Two halves in flight see half of them.
int64_t Model::full_sequences() const {
  const int64_t sequences = options_.max_tokens / options_.max_positions;
  return options_.overlap && tensor_.size() > 1 && sequences > 1 ? sequences / 2 : sequences;
}

std::string Model::attention_choice() const {
  std::string choice;
  for (const AttentionShape& shape : attention_shapes()) {
    const std::string one = lorashard::attention_choice(stream_, dims_.type, shape,
                                                        full_sequences(), options_.max_positions);
    if (choice == one) continue;
    if (!choice.empty()) choice += "; with a window of " + std::to_string(shape.window) + ": ";
    choice += one;
  }
  return choice;
}

LayerPart Model::part(int64_t first_row, int64_t tokens, const Sequences& sequences,
                      const int32_t* positions, const DropoutState& dropout) const {
  BlockContext c{.linear = {.stream = stream_,
                            .values = factors_ ? factors_->values() : nullptr,
                            .gradients = gradients_,
                            .dropout = dropout,
                            .t = activations_.t},
                 .config = config_,
                 .attention = attention_shape(),
                 .sequences = sequences,
                 .positions = positions + first_row,
                 .rope_table = rope_table_,
                 .window_rope_table = window_rope_table_,
                 .scratch = rows_of(activations_.scratch, first_row, tokens)};
  if (dropout.row_keys) c.linear.dropout.row_keys += first_row;
  return {first_row, tokens, c, 0};
}

// The micro-batch as the layers see it: one part, or two when their all-reduces are to overlap.
std::vector<LayerPart> Model::stage_parts(const MicroBatch& batch, bool training) {
  const int32_t* positions = positions_.put(batch.positions);
  DropoutState dropout;
  if (training && options_.dropout > 0) {
    dropout = {options_.dropout, options_.seed, row_keys_.put(batch.row_keys)};
  }
  const std::span<const int32_t> offsets = batch.offsets;
  const size_t middle = options_.overlap && tensor_.size() > 1 ? middle_sequence(offsets) : 0;
  std::vector<LayerPart> parts;
  const size_t cuts[] = {0, middle, offsets.size() - 1};
  for (size_t i = middle == 0 ? 1 : 0; i < 2; ++i) {
    const int32_t first = offsets[cuts[i]];
    std::vector<int32_t>& mine = part_offsets_[i];
    mine.assign(offsets.begin() + int64_t(cuts[i]), offsets.begin() + int64_t(cuts[i + 1]) + 1);
    for (int32_t& o : mine) o -= first;
    const int32_t* device = offsets_[i].put(mine);
    parts.push_back(part(first, mine.back(), {mine, mine, device, device}, positions, dropout));
  }
  return parts;
}

void Model::embed(const int32_t* ids, int64_t tokens) {
  const ProfileSpan span("layer", "embedding");
  const Matrix x = activations_.residual[0].row_range(0, tokens);
  // transformers rounds the factor to the type that the model runs in.
  const float scale = options_.activation_type == DType::BF16
                          ? bf16_to_float(float_to_bf16(config_.embedding_scale))
                          : config_.embedding_scale;
  frozen_rows(stream_, x, ids, weights_.embedding, weights_.vocabulary.begin, scale);
  leave_region(tensor_, stream_, x, "embedding");
}

LayerStack Model::stack() const {
  return {tensor_, weights_.blocks, labels_, activations_, dims_.first_layer};
}

void Model::clear_loss() { fill_zero(stream_, matrix(loss_.sum(), 1, 2, DType::F32)); }

void Model::forward_backward(const MicroBatch& batch) {
  stage(batch);
  forward_backward_staged();
}

void Model::stage(const MicroBatch& batch) {
  assert(factors_ && gradients_);
  staged_ = {ids_.put(batch.ids), int64_t(batch.ids.size()), stage_parts(batch, true)};
  loss_.stage(batch.labels);
}

void Model::forward_backward_staged() {
  embed(staged_.ids, staged_.tokens);
  forward_layers(stack(), staged_.parts, nullptr);
  loss_.forward_backward(activations_.residual.back().row_range(0, staged_.tokens),
                         activations_.dx.row_range(0, staged_.tokens));
  backward_layers(stack(), staged_.parts);
}

double Model::evaluate(const MicroBatch& batch) {
  if (batch.ids.empty()) return 0;
  const auto tokens = int64_t(batch.ids.size());
  std::vector<LayerPart> parts = stage_parts(batch, false);
  loss_.stage(batch.labels);
  embed(ids_.put(batch.ids), tokens);
  forward_layers(stack(), parts, nullptr);
  clear_loss();
  loss_.forward_backward(activations_.residual.back().row_range(0, tokens), {});
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
    const Sequences sequences{offsets, kv_offsets, offsets_[0].put(offsets),
                              kv_offsets_.put(kv_offsets)};
    LayerPart whole = part(0, n, sequences, positions_.put(positions), {});
    embed(ids_.put(piece), n);
    forward_layers(stack(), {&whole, 1}, &state.caches);
    state.position += n;
    if (!tokens.empty()) continue;
    // Each rank's slice in its place, zero elsewhere; all-reduced, it is the whole row.
    fill_zero(stream_, all);
    loss_.logits(activations_.residual.back(), n - 1,
                 all.col_range(weights_.vocabulary.begin, weights_.vocabulary.size()));
    leave_region(tensor_, stream_, all, "logits");
    copy_to_host(stream_, logits.data(), all.data, int64_t(logits.size_bytes()));
  }
}

}  // namespace lorashard
