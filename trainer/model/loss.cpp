#include "trainer/model/loss.h"

#include <algorithm>
#include <cmath>

#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "kernels/matmul.h"
#include "kernels/profile.h"
#include "kernels/rows.h"
#include "parallel/tensor_region.h"
#include "trainer/model/activations.h"

namespace lorashard {
namespace {

// Logits of a chunk take at most this much memory on a rank; it is memory that the layers work in
// before and after. Every chunk reads and packs the whole head, so few rows cost time: 170 rows run
// at 0.7 of the GEMMs' rate, 340 at 0.85.
constexpr int64_t kLogitsBytes = int64_t{64} << 20;
constexpr int64_t kMaxChunkRows = 1024;

}  // namespace

int64_t loss_chunk_rows(int64_t vocabulary, int ranks, int64_t tokens) {
  // Every rank must cut the same chunks, so the widest slice decides.
  const int64_t widest = (vocabulary + ranks - 1) / ranks + 16;
  return std::clamp<int64_t>(kLogitsBytes / (widest * 4), 1,
                             std::min(kMaxChunkRows, std::max<int64_t>(tokens, 1)));
}

LossBuffers plan_loss(Arena& arena, const LossDims& d) {
  LossBuffers at;
  at.picked = arena.take(d.tokens, d.hidden, d.type);
  at.normed = arena.take(d.tokens, d.hidden, d.type);
  at.norm_stats = arena.take(d.tokens, d.norm_stats, DType::F32);
  at.d_normed = arena.take(d.tokens, d.hidden, d.type);
  at.logits = arena.take(d.chunk_rows, d.vocabulary, DType::F32);
  at.stats = arena.take(d.ranks * d.chunk_rows, 3, DType::F32);
  at.lse = arena.take(d.beta > 0 ? d.tokens : d.chunk_rows, 1, DType::F32);
  if (d.beta > 0) {
    at.row_losses = arena.take(d.tokens, 1, DType::F64);
    at.row_factors = arena.take(d.tokens, 1, DType::F32);
  }
  if (d.lora_rank > 0) {
    at.u = arena.take(d.chunk_rows, d.lora_rank, DType::F32);
    at.t = arena.take(d.chunk_rows, d.lora_rank, DType::F32);
  }
  if (d.token_rows > 0) at.tokens = arena.take(d.chunk_rows, d.token_rows, DType::F32);
  return at;
}

LossHead::LossHead(Stream& stream, const ModelConfig& config, const ModelWeights& weights,
                   Communicator& tensor, int64_t max_tokens, DType activation_type, double beta)
    : stream_(stream),
      config_(config),
      weights_(weights),
      tensor_(tensor),
      dims_{.tokens = max_tokens,
            .hidden = config.hidden_size,
            .norm_stats = norm_stats_columns(config),
            .chunk_rows = loss_chunk_rows(config.vocab_size, tensor.size(), max_tokens),
            .vocabulary = weights.vocabulary.size(),
            .ranks = tensor.size(),
            .type = activation_type,
            .beta = beta} {
  totals_ = Buffer(stream, sizeof(LossTotals));
  device_rows_ = Staged<int32_t>(stream, max_tokens);
  device_labels_ = Staged<int32_t>(stream, max_tokens);
  device_keys_ = Staged<uint64_t>(stream, max_tokens);
  if (!pairs()) return;
  device_row_offsets_ = Staged<int32_t>(stream, max_tokens + 1);
  policy_logps_ = Buffer(stream, size_t(max_tokens) * sizeof(double));
  reference_logps_ = Buffer(stream, size_t(max_tokens) * sizeof(double));
}

void LossHead::plan(Arena& arena) {
  dims_.lora_rank = weights_.head.lora_rank;
  dims_.token_rows = weights_.head_tokens ? weights_.head_tokens.values.rows : 0;
  at_ = plan_loss(arena, dims_);
}

void LossHead::stage(std::span<const int32_t> labels, std::span<const int32_t> offsets,
                     std::span<const uint64_t> row_keys) {
  rows_.clear();
  labels_.clear();
  keys_.clear();
  row_offsets_.assign(1, 0);
  size_t sequence = 1;  // whose end comes next
  for (size_t t = 0; t < labels.size(); ++t) {
    for (; sequence < offsets.size() && size_t(offsets[sequence]) == t; ++sequence) {
      row_offsets_.push_back(int32_t(rows_.size()));
    }
    if (labels[t] < 0) continue;
    rows_.push_back(int32_t(t));
    labels_.push_back(labels[t]);
    if (!row_keys.empty()) keys_.push_back(row_keys[t]);
  }
  row_offsets_.resize(offsets.size(), int32_t(rows_.size()));
  staged_rows_ = device_rows_.put(rows_);
  staged_labels_ = device_labels_.put(labels_);
  staged_keys_ = row_keys.empty() ? nullptr : device_keys_.put(keys_);
  if (pairs()) staged_row_offsets_ = device_row_offsets_.put(row_offsets_);
}

// Of equal size, as few as there can be.
std::vector<LossHead::Chunk> LossHead::chunks() const {
  const auto rows = int64_t(rows_.size());
  const int64_t count = (rows + dims_.chunk_rows - 1) / dims_.chunk_rows;
  std::vector<Chunk> all;
  for (int64_t c = 0; c < count; ++c) {
    const int64_t begin = rows * c / count;
    all.push_back({begin, rows * (c + 1) / count - begin});
  }
  return all;
}

// Unmasked rows of x, and their norm.
void LossHead::normalize(ConstMatrix x) {
  const auto rows = int64_t(rows_.size());
  const Matrix picked = at_.picked.row_range(0, rows), normed = at_.normed.row_range(0, rows);
  gather_rows(stream_, picked, x, staged_rows_);
  norm_forward(stream_, config_, normed, at_.norm_stats.row_range(0, rows), picked,
               weights_.final_norm);
}

// The head's context for a chunk: its own rows' dropout, and its own scratch.
LinearContext LossHead::head_context(const LinearContext& layers, const Chunk& chunk) const {
  LinearContext c = layers;
  c.dropout = staged_keys_
                  ? DropoutState{c.dropout.rate, c.dropout.seed, staged_keys_ + chunk.begin}
                  : DropoutState{};
  c.t = at_.t;
  return c;
}

Matrix LossHead::chunk_logits(const LinearContext& layers, const Chunk& chunk) {
  const Matrix logits = at_.logits.row_range(0, chunk.n);
  head_forward(head_context(layers, chunk), logits, at_.normed.row_range(chunk.begin, chunk.n));
  return logits;
}

void LossHead::statistics(const Chunk& chunk, Matrix logits, float* lse, double* loss,
                          double* row_losses) {
  // Each rank's statistics in its own slot, zero elsewhere: the all-reduce is a gather that also
  // works on device memory.
  const Matrix all = at_.stats.row_range(0, chunk.n * tensor_.size());
  if (tensor_.size() > 1) fill_zero(stream_, all);
  cross_entropy_stats(stream_, all.row_range(chunk.n * tensor_.rank(), chunk.n), logits,
                      staged_labels_ + chunk.begin, weights_.vocabulary.begin);
  tensor_.all_reduce_sum(stream_, all, "loss.statistics");
  cross_entropy_combine(stream_, lse, loss, all, tensor_.size(), row_losses);
}

// Of the normed rows, this rank's part; the logits are overwritten.
void LossHead::gradient(const LinearContext& layers, const Chunk& chunk, Matrix logits,
                        const float* lse, const float* row_factors) {
  cross_entropy_gradient(stream_, logits, lse, staged_labels_ + chunk.begin,
                         weights_.vocabulary.begin, 1.0f, row_factors);
  head_backward(head_context(layers, chunk), at_.d_normed.row_range(chunk.begin, chunk.n), logits,
                at_.normed.row_range(chunk.begin, chunk.n));
}

void LossHead::finish_backward(Matrix dx) {
  const auto rows = int64_t(rows_.size());
  const Matrix d_normed = at_.d_normed.row_range(0, rows);
  enter_region_backward(tensor_, stream_, d_normed, "loss.head_backward");
  norm_backward(stream_, config_, d_normed, d_normed, at_.picked.row_range(0, rows),
                at_.norm_stats.row_range(0, rows), weights_.final_norm, false);
  scatter_rows(stream_, dx, d_normed, staged_rows_);
}

// log p of each sequence; lse of every row stays in at_.lse.
void LossHead::logps(const LinearContext& layers, ConstMatrix x, double* of_sequences) {
  auto* lse = static_cast<float*>(at_.lse.data);
  auto* losses = static_cast<double*>(at_.row_losses.data);
  normalize(x);
  for (const Chunk& chunk : chunks()) {
    statistics(chunk, chunk_logits(layers, chunk), lse + chunk.begin, nullptr,
               losses + chunk.begin);
  }
  sequence_logps(stream_, of_sequences, losses, staged_row_offsets_,
                 int64_t(row_offsets_.size()) - 1);
}

void LossHead::reference(const LinearContext& layers, ConstMatrix x) {
  const ProfileSpan span("layer", "loss");
  logps(layers, x, reference_logps_.as<double>());
}

void LossHead::head_forward(const LinearContext& c, Matrix logits, ConstMatrix normed) {
  const int64_t n = logits.rows;
  linear_group_forward(c, weights_.head, {&logits, 1}, normed,
                       dims_.lora_rank > 0 ? at_.u.row_range(0, n) : Matrix{});
  if (const TokenRows& rows = weights_.head_tokens) {
    const Matrix own = at_.tokens.row_range(0, n);
    matmul_nt(stream_, own, normed, rows.values);
    put_columns(stream_, logits, own, rows.device_ids, weights_.vocabulary.begin);
  }
}

void LossHead::head_backward(const LinearContext& c, Matrix d_normed, Matrix logits,
                             ConstMatrix normed) {
  const int64_t n = logits.rows;
  const TokenRows& rows = weights_.head_tokens;
  const Matrix own = rows ? at_.tokens.row_range(0, n) : Matrix{};
  if (rows) {
    take_columns(stream_, own, logits, rows.device_ids, weights_.vocabulary.begin);
    if (rows.gradient) matmul_tn(stream_, rows.gradient, own, normed, 1, 1);
  }
  const ConstMatrix d_logits = logits;
  linear_group_backward(c, weights_.head, d_normed, {&d_logits, 1}, normed,
                        dims_.lora_rank > 0 ? at_.u.row_range(0, n) : Matrix{});
  if (rows) matmul_nn(stream_, d_normed, own, rows.values, 1, 1);
}

void LossHead::forward_backward(const LinearContext& layers, ConstMatrix x, Matrix dx) {
  const ProfileSpan span("layer", "loss");
  auto* lse = static_cast<float*>(at_.lse.data);
  if (!pairs()) {
    normalize(x);
    for (const Chunk& chunk : chunks()) {
      const Matrix logits = chunk_logits(layers, chunk);
      statistics(chunk, logits, lse, &totals()->loss, nullptr);
      if (dx) gradient(layers, chunk, logits, lse, nullptr);
    }
    if (dx) finish_backward(dx);
    return;
  }
  // A row's factor in the gradient depends on all rows of its pair: their losses come first, and
  // logits again, unless one chunk holds them all.
  auto* factors = dx ? static_cast<float*>(at_.row_factors.data) : nullptr;
  logps(layers, x, policy_logps_.as<double>());
  preference_loss(stream_, factors, totals(), policy_logps_.as<double>(),
                  reference_logps_.as<double>(), staged_row_offsets_,
                  int64_t(row_offsets_.size()) / 2, dims_.beta);
  if (!dx) return;
  const std::vector<Chunk> all = chunks();
  for (const Chunk& chunk : all) {
    const Matrix logits =
        all.size() == 1 ? at_.logits.row_range(0, chunk.n) : chunk_logits(layers, chunk);
    gradient(layers, chunk, logits, lse + chunk.begin, factors + chunk.begin);
  }
  finish_backward(dx);
}

void LossHead::logits(const LinearContext& c, ConstMatrix x, int64_t row, Matrix logits) {
  const Matrix normed = at_.normed.row_range(0, 1);
  norm_forward(stream_, config_, normed, {}, x.row_range(row, 1), weights_.final_norm);
  head_forward(c, logits, normed);
}

}  // namespace lorashard
