#include "trainer/model/loss.h"

#include <algorithm>
#include <cmath>

#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
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
  at.lse = arena.take(d.chunk_rows, 1, DType::F32);
  return at;
}

LossHead::LossHead(Stream& stream, const ModelConfig& config, const ModelWeights& weights,
                   Communicator& tensor, int64_t max_tokens, DType activation_type)
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
            .type = activation_type} {
  sum_ = Buffer(stream, sizeof(double));
  device_rows_ = Staged<int32_t>(stream, max_tokens);
  device_labels_ = Staged<int32_t>(stream, max_tokens);
}

void LossHead::stage(std::span<const int32_t> labels) {
  rows_.clear();
  labels_.clear();
  for (size_t t = 0; t < labels.size(); ++t) {
    if (labels[t] < 0) continue;
    rows_.push_back(int32_t(t));
    labels_.push_back(labels[t]);
  }
  staged_rows_ = device_rows_.put(rows_);
  staged_labels_ = device_labels_.put(labels_);
}

void LossHead::forward_backward(ConstMatrix x, Matrix dx) {
  const ProfileSpan span("layer", "loss");
  const auto count = int64_t(rows_.size());
  const Matrix picked = at_.picked.row_range(0, count), normed = at_.normed.row_range(0, count);
  const Matrix norm_stats = at_.norm_stats.row_range(0, count),
               d_normed = at_.d_normed.row_range(0, count);
  gather_rows(stream_, picked, x, staged_rows_);
  norm_forward(stream_, config_, normed, norm_stats, picked, weights_.final_norm);
  auto* lse = static_cast<float*>(at_.lse.data);
  // Chunks of equal size, as few as there can be.
  const int64_t chunks = (count + dims_.chunk_rows - 1) / dims_.chunk_rows;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t begin = count * chunk / chunks, n = count * (chunk + 1) / chunks - begin;
    const Matrix logits = at_.logits.row_range(0, n);
    const int32_t* chunk_labels = staged_labels_ + begin;
    frozen_forward(stream_, logits, normed.row_range(begin, n), weights_.head);
    // Each rank's statistics in its own slot, zero elsewhere: the all-reduce is a gather that also
    // works on device memory.
    const Matrix all = at_.stats.row_range(0, n * tensor_.size());
    if (tensor_.size() > 1) fill_zero(stream_, all);
    cross_entropy_stats(stream_, all.row_range(n * tensor_.rank(), n), logits, chunk_labels,
                        weights_.vocabulary.begin);
    tensor_.all_reduce_sum(stream_, all, "loss.statistics");
    cross_entropy_combine(stream_, lse, sum(), all, tensor_.size());
    if (!dx) continue;
    cross_entropy_gradient(stream_, logits, lse, chunk_labels, weights_.vocabulary.begin, 1.0f);
    frozen_backward(stream_, d_normed.row_range(begin, n), logits, weights_.head);
  }
  if (dx) {
    enter_region_backward(tensor_, stream_, d_normed, "loss.head_backward");
    norm_backward(stream_, config_, d_normed, d_normed, picked, norm_stats, weights_.final_norm,
                  false);
    scatter_rows(stream_, dx, d_normed, staged_rows_);
  }
}

void LossHead::logits(ConstMatrix x, int64_t row, Matrix logits) {
  const Matrix normed = at_.normed.row_range(0, 1);
  norm_forward(stream_, config_, normed, {}, x.row_range(row, 1), weights_.final_norm);
  frozen_forward(stream_, logits, normed, weights_.head);
}

}  // namespace lorashard
