#include "trainer/loss.h"

#include <algorithm>
#include <cmath>

#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "kernels/matmul.h"
#include "kernels/profile.h"
#include "kernels/rms_norm.h"
#include "kernels/rows.h"

namespace lorashard {
namespace {

// Logits of a chunk take at most this much memory on a rank. Chunks of a few hundred rows already
// run the products at full rate, so more would only cost cache.
constexpr int64_t kLogitsBytes = int64_t{32} << 20;
constexpr int64_t kMaxChunkRows = 512;

}  // namespace

LossHead::LossHead(Stream& stream, const ModelConfig& config, const ModelWeights& weights,
                   Communicator& tensor, int64_t max_tokens, DType activation_type)
    : stream_(stream), config_(config), weights_(weights), tensor_(tensor) {
  const int64_t hidden = config.hidden_size, vocab = weights.vocabulary.size();
  // Every rank must cut the same chunks, so the widest slice decides.
  const int64_t widest = (config.vocab_size + tensor.size() - 1) / tensor.size() + 16;
  chunk_rows_ = std::clamp<int64_t>(kLogitsBytes / (widest * 4), 1,
                                    std::min(kMaxChunkRows, std::max<int64_t>(max_tokens, 1)));
  int next = 0;
  const auto allocate = [&](int64_t rows, int64_t cols, DType type) {
    memory_[next] = Buffer(stream, size_t(rows * cols * size_of(type)));
    return matrix(memory_[next++].data(), rows, cols, type);
  };
  picked_ = allocate(max_tokens, hidden, activation_type);
  normed_ = allocate(max_tokens, hidden, activation_type);
  rstd_ = allocate(max_tokens, 1, DType::F32);
  d_normed_ = allocate(max_tokens, hidden, activation_type);
  logits_ = allocate(chunk_rows_, vocab, DType::F32);
  stats_ = allocate(tensor.size() * chunk_rows_, 3, DType::F32);
  lse_.resize(size_t(chunk_rows_));
}

double LossHead::forward_backward(ConstMatrix x, std::span<const int32_t> labels, Matrix dx) {
  const ProfileSpan span("layer", "loss");
  rows_.clear();
  labels_.clear();
  for (size_t t = 0; t < labels.size(); ++t) {
    if (labels[t] < 0) continue;
    rows_.push_back(int32_t(t));
    labels_.push_back(labels[t]);
  }
  const auto count = int64_t(rows_.size());
  const Matrix picked = picked_.row_range(0, count), normed = normed_.row_range(0, count);
  const Matrix rstd = rstd_.row_range(0, count), d_normed = d_normed_.row_range(0, count);
  gather_rows(stream_, picked, x, rows_.data());
  rms_norm_forward(stream_, normed, rstd, picked, weights_.final_norm, config_.rms_norm_eps,
                   config_.norm_gain_offset);
  double loss = 0;
  for (int64_t begin = 0; begin < count; begin += chunk_rows_) {
    const int64_t n = std::min(chunk_rows_, count - begin);
    const Matrix logits = logits_.row_range(0, n);
    const int32_t* chunk_labels = labels_.data() + begin;
    matmul_nt(stream_, logits, normed.row_range(begin, n), weights_.head);
    // Each rank's statistics in its own slot, zero elsewhere: the sum is a gather that also works
    // on device memory.
    const Matrix all = stats_.row_range(0, n * tensor_.size());
    if (tensor_.size() > 1) fill_zero(stream_, all);
    cross_entropy_stats(stream_, all.row_range(n * tensor_.rank(), n), logits, chunk_labels,
                        weights_.vocabulary.begin);
    tensor_.all_reduce_sum(stream_, all, "loss.statistics");
    loss += cross_entropy_combine(stream_, lse_.data(), all, tensor_.size());
    if (!dx) continue;
    cross_entropy_gradient(stream_, logits, lse_.data(), chunk_labels, weights_.vocabulary.begin,
                           1.0f);
    matmul_nn(stream_, d_normed.row_range(begin, n), logits, weights_.head);
  }
  if (dx) {
    tensor_.all_reduce_sum(stream_, d_normed, "loss.head_backward");
    rms_norm_backward(stream_, d_normed, d_normed, picked, rstd, weights_.final_norm,
                      config_.norm_gain_offset, false);
    scatter_rows(stream_, dx, d_normed, rows_.data());
  }
  return loss;
}

void LossHead::logits(ConstMatrix x, std::span<const int32_t> rows, Matrix logits) {
  const auto n = int64_t(rows.size());
  const Matrix picked = picked_.row_range(0, n), normed = normed_.row_range(0, n);
  gather_rows(stream_, picked, x, rows.data());
  rms_norm_forward(stream_, normed, {}, picked, weights_.final_norm, config_.rms_norm_eps,
                   config_.norm_gain_offset);
  matmul_nt(stream_, logits, normed, weights_.head);
}

}  // namespace lorashard
