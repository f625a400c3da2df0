// Training checkpoints: RUN/checkpoints/step-NNNNNN/ with the adapter in PEFT's layout, the fp32
// training state, and a manifest with the SHA-256 of every file. No file knows a layout.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/adapter.h"

namespace lorashard {

// Counters and provenance.
struct TrainingCounters {
  int64_t step = 0;                // optimizer steps done
  int64_t sequences_consumed = 0;  // position in the (shuffled) stream of training sequences
  int64_t tokens = 0;              // counted labels so far
  uint64_t seed = 0;
  std::string base_digest;
  std::string data_digest;    // of the training data; empty if unknown
  std::string config_digest;  // of the settings that fix the mathematics
};

// Moments of each factor, in the order of Adapter::modules: A then B of each module.
struct TrainingState {
  TrainingCounters counters;
  Adapter adapter;
  std::vector<std::vector<float>> first_moment, second_moment;
};

// Writes RUN/checkpoints/step-NNNNNN in one rename after fsync, then RUN/checkpoints/latest;
// removes all but the newest `keep_last` (0 keeps all). On any failure nothing but whole
// checkpoints remains. REQUIRES: called by one rank.
void save_checkpoint(const fs::path& run_dir, const TrainingState& state, int64_t keep_last);

struct LoadedCheckpoint {
  TrainingState state;
  fs::path path;
  std::vector<std::string> notes;  // damaged newer checkpoints that were passed over, by name
};

// The newest whole checkpoint of a run, or nothing if there is none. Checks inventory, digests,
// shapes (against `modules`) and finiteness. If checkpoints exist and all are damaged: Error,
// status 2.
std::optional<LoadedCheckpoint> load_newest_checkpoint(const fs::path& run_dir,
                                                       const std::vector<LinearModule>& modules);

}  // namespace lorashard
