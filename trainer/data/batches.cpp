#include "trainer/data/batches.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cmath>

#include "kernels/random.h"

namespace lorashard {
namespace {

// Two halves of a few bits mix slowly; 8 rounds of Philox cost well under a microsecond.
constexpr uint64_t kRounds = 8;
constexpr int kPositionBits =
    20;  // of a line's tokens: data.seq_len is at most 2^20, of pairs 2^19

// Parts of at most `size` that n falls into.
int64_t parts(int64_t n, int64_t size) { return (n + size - 1) / size; }

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

int64_t steps_of_epochs(double epochs, int64_t sequences, int64_t global_batch,
                        const StreamPosition& position) {
  const int64_t per_epoch = parts(sequences, global_batch);
  constexpr double kMost = double(int64_t{1} << 53);
  const auto all = int64_t(std::min(std::ceil(epochs * double(per_epoch)), kMost));
  const int64_t visited = position.place - position.data_begins, within = visited % sequences;
  // Of the epoch that the position is in, whose steps before it may have been of another size.
  const int64_t left = within == 0 ? 0 : parts(sequences - within, global_batch);
  return position.step + all - parts(visited, sequences) * per_epoch + left;
}

BatchStream::BatchStream(std::shared_ptr<const Dataset> dataset, uint64_t seed, bool shuffle,
                         int64_t global_batch, int64_t micro_batch, int64_t dp_rank,
                         int64_t dp_size, StreamPosition position, bool by_epochs)
    : dataset_(std::move(dataset)),
      seed_(seed),
      shuffle_(shuffle),
      by_epochs_(by_epochs),
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

// Of a step, over all ranks.
BatchStream::Places BatchStream::places_of(int64_t step) const {
  const int64_t later = step - position_.step;
  if (!by_epochs_) return {position_.place + later * global_batch_, global_batch_};
  const int64_t n = dataset_->size(), per_epoch = parts(n, global_batch_);
  const int64_t within = (position_.place - position_.data_begins) % n;
  const int64_t left = parts(n - within, global_batch_);  // steps of the position's epoch
  if (later < left) {
    const int64_t at = within + later * global_batch_;
    return {position_.place + later * global_batch_, std::min(global_batch_, n - at)};
  }
  const int64_t epochs = (later - left) / per_epoch,
                at = (later - left) % per_epoch * global_batch_;
  return {position_.place + (n - within) + epochs * n + at, std::min(global_batch_, n - at)};
}

// This rank's share of them.
BatchStream::Places BatchStream::mine(int64_t step) const {
  const Places all = places_of(step);
  const int64_t begin = all.count * dp_rank_ / dp_size_;
  return {all.first + begin, all.count * (dp_rank_ + 1) / dp_size_ - begin};
}

int64_t BatchStream::micro_batches(int64_t step) const {
  return parts(mine(step).count, micro_batch_);
}

double BatchStream::epoch_after(int64_t step) const {
  const Places all = places_of(step);
  return double(all.first + all.count - position_.data_begins) / double(dataset_->size());
}

MicroBatch BatchStream::micro_batch(int64_t step, int64_t m) const {
  const Places places = mine(step);
  const int64_t begin = m * micro_batch_, end = std::min(begin + micro_batch_, places.count);
  MicroBatch batch;
  batch.offsets.push_back(0);
  for (int64_t i = begin; i < end; ++i)
    append(batch, dataset_->get(sequence_at(places.first + i)), places.first + i);
  return batch;
}

std::vector<MicroBatch> BatchStream::batch(int64_t step) const {
  std::vector<MicroBatch> all;
  for (int64_t m = 0; m < micro_batches(step); ++m) all.push_back(micro_batch(step, m));
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
