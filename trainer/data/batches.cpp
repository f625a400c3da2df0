#include "trainer/data/batches.h"

#include <algorithm>
#include <bit>
#include <cassert>

#include "kernels/random.h"

namespace lorashard {
namespace {

// Two halves of a few bits mix slowly; 8 rounds of Philox cost well under a microsecond.
constexpr uint64_t kRounds = 8;
constexpr int kPositionBits = 20;  // data.seq_len is at most 2^20

void append(MicroBatch& batch, const Example& example, int64_t place) {
  const size_t size = example.input_ids.size();
  batch.ids.insert(batch.ids.end(), example.input_ids.begin(), example.input_ids.end());
  size_t start = 0;  // of the sequence that token t is in
  auto next_start = example.starts.begin();
  for (size_t t = 0; t < size; ++t) {
    if (next_start != example.starts.end() && t == size_t(*next_start)) {
      start = t;
      batch.offsets.push_back(static_cast<int32_t>(batch.labels.size()));
      ++next_start;
    }
    const int32_t label = t + 1 < size ? example.labels[t + 1] : kIgnoredLabel;
    batch.labels.push_back(label);
    batch.positions.push_back(static_cast<int32_t>(t - start));
    batch.row_keys.push_back((static_cast<uint64_t>(place) << kPositionBits) + t);
    batch.unmasked += label != kIgnoredLabel;
  }
  batch.offsets.push_back(static_cast<int32_t>(batch.ids.size()));
}

}  // namespace

int64_t permuted(int64_t i, int64_t n, uint64_t seed, uint64_t epoch) {
  assert(0 <= i && i < n);
  if (n == 1) return 0;
  const int half = (std::bit_width(static_cast<uint64_t>(n - 1)) + 1) / 2;  // bits of each half
  const uint64_t mask = (uint64_t{1} << half) - 1;
  uint64_t value = static_cast<uint64_t>(i);
  do {
    uint64_t left = value >> half, right = value & mask;
    for (uint64_t round = 0; round < kRounds; ++round) {
      const uint64_t word = random_words(seed, Purpose::Shuffle, epoch, round << 56 | right)[0];
      const uint64_t next = left ^ (word & mask);
      left = right;
      right = next;
    }
    value = left << half | right;
  } while (value >= static_cast<uint64_t>(n));
  return static_cast<int64_t>(value);
}

BatchStream::BatchStream(std::shared_ptr<const Dataset> dataset, uint64_t seed, bool shuffle,
                         int64_t global_batch, int64_t micro_batch, int64_t dp_rank,
                         int64_t dp_size, StreamPosition position)
    : dataset_(std::move(dataset)),
      seed_(seed),
      shuffle_(shuffle),
      global_batch_(global_batch),
      micro_batch_(micro_batch),
      dp_rank_(dp_rank),
      dp_size_(dp_size),
      position_(position) {
  assert(global_batch % (micro_batch * dp_size) == 0 && dp_rank < dp_size);
}

int64_t BatchStream::sequence_at(int64_t place) const {
  const int64_t n = dataset_->size(), at = place - position_.data_begins, within = at % n;
  return shuffle_ ? permuted(within, n, seed_, static_cast<uint64_t>(at / n)) : within;
}

MicroBatch BatchStream::micro_batch(int64_t step, int64_t m) const {
  const int64_t first = position_.place + (step - position_.step) * global_batch_ +
                        dp_rank_ * (global_batch_ / dp_size_) + m * micro_batch_;
  MicroBatch batch;
  batch.offsets.push_back(0);
  for (int64_t place = first; place < first + micro_batch_; ++place)
    append(batch, dataset_->get(sequence_at(place)), place);
  return batch;
}

std::vector<MicroBatch> BatchStream::batch(int64_t step) const {
  std::vector<MicroBatch> all;
  for (int64_t m = 0; m < micro_batches(); ++m) all.push_back(micro_batch(step, m));
  return all;
}

EvalBatches::EvalBatches(std::shared_ptr<const Dataset> dataset, int64_t micro_batch,
                         int64_t dp_rank, int64_t dp_size)
    : dataset_(std::move(dataset)),
      micro_batch_(micro_batch),
      begin_(dataset_->size() * dp_rank / dp_size),
      end_(dataset_->size() * (dp_rank + 1) / dp_size) {}

MicroBatch EvalBatches::micro_batch(int64_t m) const {
  const int64_t first = begin_ + m * micro_batch_;
  MicroBatch batch;
  batch.offsets.push_back(0);
  for (int64_t i = first; i < std::min(first + micro_batch_, end_); ++i)
    append(batch, dataset_->get(i), i);
  return batch;
}

}  // namespace lorashard
