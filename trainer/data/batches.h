// From sequences to the micro-batches of each optimizer step. Everything is a function of (seed,
// step, rank), so that a run may start at any step and at any data-parallel degree.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "trainer/data/dataset.h"

namespace lorashard {

// A permutation of 0..n-1 drawn from (seed, epoch), in O(1) memory: a Feistel network whose round
// function is random_words, over the next power of 4, walked until it lands below n (Black and
// Rogaway 2002, "Ciphers with arbitrary finite domains", section 4). Returns where index i goes.
// REQUIRES: 0 <= i < n.
int64_t permuted(int64_t i, int64_t n, uint64_t seed, uint64_t epoch);

// Sequences laid end to end without padding; T tokens in all. A line of the data is one sequence,
// or several where it says so (Example::starts); of a preference format two, chosen and rejected.
struct MicroBatch {
  std::vector<int32_t> ids;        // (T)
  std::vector<int32_t> labels;     // (T) shifted: the target of token t, -100 none; the last token
                                   // of each sequence has none
  std::vector<int32_t> positions;  // (T) from 0 in each sequence
  std::vector<int32_t> offsets;    // (sequences + 1) where each sequence starts; the last is T
  std::vector<uint64_t> row_keys;  // (T) unique in the run: place of the line in the stream x 2^20
                                   // + place of the token in it
  int64_t unmasked = 0;            // tokens whose label is not -100
};

// Where a run is in its stream: `step` begins at `place`, and the first epoch of the present data
// began at place `data_begins`. Places are never used twice in a run, so they key its dropout.
struct StreamPosition {
  int64_t step = 0, place = 0, data_begins = 0;
};

// Optimizer steps of a run, those before `position` among them, until it has visited its present
// data `epochs` times in steps that end with each epoch: ceil(epochs x steps of an epoch), as
// transformers counts them. Below position.step where more has been visited already.
int64_t steps_of_epochs(double epochs, int64_t sequences, int64_t global_batch,
                        const StreamPosition& position = {});

// The endless stream of training sequences, epoch after epoch; each optimizer step takes the next
// global_batch places, which may cross the end of an epoch, or, `by_epochs`, end with it: then the
// last step of each epoch is of those that are left. Data-parallel rank d takes a contiguous share
// of them and cuts it into micro-batches.
class BatchStream {
 public:
  // REQUIRES: global_batch is a multiple of micro_batch * dp_size.
  BatchStream(std::shared_ptr<const Dataset> dataset, uint64_t seed, bool shuffle,
              int64_t global_batch, int64_t micro_batch, int64_t dp_rank, int64_t dp_size,
              StreamPosition position = {}, bool by_epochs = false);

  // Sequences of a step over all ranks.
  int64_t sequences(int64_t step) const { return places_of(step).count; }
  // Micro-batches of this rank in a step: in one that ends an epoch, perhaps none.
  int64_t micro_batches(int64_t step) const;
  // Micro-batch m of step `step` (from 0, at least the position's). May be called from several
  // threads. Errors: as Dataset::get.
  MicroBatch micro_batch(int64_t step, int64_t m) const;
  // All of them, where the unmasked tokens of the step are needed first.
  std::vector<MicroBatch> batch(int64_t step) const;
  // Epochs of the present data that are visited after step `step`; 1.5: half of the second.
  double epoch_after(int64_t step) const;
  // Sequence (line that is not blank, from 0) at a place of the stream.
  int64_t sequence_at(int64_t place) const;

 private:
  struct Places {
    int64_t first, count;
  };
  Places places_of(int64_t step) const;
  Places mine(int64_t step) const;

  std::shared_ptr<const Dataset> dataset_;
  uint64_t seed_;
  bool shuffle_, by_epochs_;
  int64_t global_batch_, micro_batch_, dp_rank_, dp_size_;
  StreamPosition position_;
};

// Every sequence of an evaluation file once, in the file's order, shared out over the data-parallel
// ranks in contiguous parts. The last micro-batch may hold fewer sequences; a rank may have none.
class EvalBatches {
 public:
  EvalBatches(std::shared_ptr<const Dataset> dataset, int64_t micro_batch, int64_t dp_rank,
              int64_t dp_size);

  // Micro-batches of this rank.
  int64_t micro_batches() const { return (end_ - begin_ + micro_batch_ - 1) / micro_batch_; }
  MicroBatch micro_batch(int64_t m) const;

 private:
  std::shared_ptr<const Dataset> dataset_;
  int64_t micro_batch_, begin_, end_;
};

}  // namespace lorashard
