// Between the flat buffers of a run and its checkpoints. One rank touches the files; the others get
// what it read in broadcasts, so the run folder need not be shared.
#pragma once

#include <string>
#include <vector>

#include "checkpoint/training_state.h"
#include "configs/config.h"
#include "parallel/collectives.h"
#include "trainer/lora.h"

namespace lorashard {

struct ResumedRun {
  bool found = false;
  std::vector<std::string> notes;  // damaged checkpoints that were passed over
};

// Digest of the settings that say which data each step sees.
std::string settings_digest(const RunConfig& run);

// Fills factors, moments and counters from the newest whole checkpoint of the run, if there is one.
// `counters` says what this run has (seed, digests); a checkpoint of another base, other data,
// other LoRA settings, seed or batch is refused: Error (status 2) naming the setting. One rank
// calls it.
ResumedRun load_run(const fs::path& run_dir, const ModelConfig& model, Factors& factors,
                    TrainingCounters& counters, const Config& config);

// Hands what rank 0 loaded to all. Collective.
void share_run(ResumedRun& resumed, Factors& factors, TrainingCounters& counters,
               Communicator& world);

// Writes a checkpoint; returns notes about old ones that could not be removed. One rank calls it.
std::vector<std::string> save_run(const fs::path& run_dir, const Factors& factors,
                                  const TrainingCounters& counters, int64_t keep_last);

// RUN/adapter, replacing an earlier one. One rank calls it.
void save_final_adapter(const fs::path& run_dir, const Factors& factors);

}  // namespace lorashard
