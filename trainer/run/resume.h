// Between the flat buffers of a run and its checkpoints. One rank touches the files; the others get
// what it read in broadcasts, so the run folder need not be shared.
#pragma once

#include <string>
#include <vector>

#include "checkpoint/training_state.h"
#include "configs/config.h"
#include "parallel/collectives.h"
#include "trainer/model/factors.h"
#include "trainer/run/training_buffers.h"

namespace lorashard {

struct ResumedRun {
  bool found = false;
  bool finished = false;  // all its steps are made and RUN/adapter is there: nothing loaded
  int64_t steps = 0;      // of the run, if it is finished; on the rank that loaded
  std::vector<std::string> notes;  // damaged checkpoints that were skipped, changed settings
};

// The common part of a resume, of rank 0: `theirs` is the run's newest whole checkpoint. Fills
// counters and notes, errors as load_run().
void continue_run(const LoadedCheckpoint& theirs, TrainingCounters& counters, const Config& config,
                  bool accept_changes, ResumedRun& resumed);
// The steps of the run in all. Error (status 2) if it has made more.
int64_t check_steps(const LoadedCheckpoint& loaded, const TrainingCounters& ours,
                    const Config& config);
// Broadcasts found, finished and, of a run that goes on, the counters. Collective.
void share_counters(ResumedRun& resumed, TrainingCounters& counters, Communicator& world);

// Digest of the settings that say which data each step sees.
std::string settings_digest(const RunConfig& run);

// Fills values, moments and counters from the newest whole checkpoint of the run, if there is one.
// `counters` says what this run has (seed, digests, settings, sequences). Errors (status 2) name
// the setting: another base or other factors; fewer steps than made; unless `accept_changes`, other
// data, settings of the data, batch or seed. With it the run goes on at its place in the data where
// that still means something, and begins the data anew where the number of sequences or their order
// is another. Every change is among the notes, and in counters.changes for the checkpoints to come.
// One rank calls it.
ResumedRun load_run(const fs::path& run_dir, const ModelConfig& model, Factors& factors,
                    TrainingBuffers& buffers, TrainingCounters& counters, const Config& config,
                    bool accept_changes);

// Broadcasts what rank 0 loaded. Collective.
void share_run(ResumedRun& resumed, Factors& factors, TrainingBuffers& buffers,
               TrainingCounters& counters, Communicator& world);

// Writes a checkpoint; returns notes about old ones that could not be removed. One rank calls it.
std::vector<std::string> save_run(const fs::path& run_dir, const Factors& factors,
                                  const TrainingBuffers& buffers, const TrainingCounters& counters,
                                  int64_t keep_last);

// RUN/adapter. Of an earlier one its files are replaced; others in the folder are a user's and
// stay. One rank calls it.
void save_final_adapter(const fs::path& run_dir, const Factors& factors);

}  // namespace lorashard
