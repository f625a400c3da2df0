// Training checkpoints: RUN/checkpoints/step-NNNNNN/ with the adapter in PEFT's layout, the fp32
// training state, and a manifest with the SHA-256 of every file. No file knows a layout.
//
//   adapter_config.json, adapter_model.safetensors   fp32 factors, as PEFT reads them
//   trainer_state.safetensors                        for each module M, all fp32:
//       M.lora_A.weight, M.lora_A.exp_avg, M.lora_A.exp_avg_sq, and so for each tensor of
//       tensors_of()
//   manifest.textproto                               TrainingManifest (manifest.proto)
//
// Those of full fine-tuning have the files of weight_state.h in place of the first two lines'.
//
// RUN/checkpoints/latest holds the name of the newest one, for people and scripts. Loading goes by
// the step numbers instead: `latest` is written after the rename, so a run that is killed between
// the two leaves a whole checkpoint that `latest` does not name yet.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/adapter.h"

namespace lorashard {

// Counters and provenance.
struct TrainingCounters {
  int64_t step = 0;                // optimizer steps done
  int64_t sequences_consumed = 0;  // place in the (shuffled) stream of training sequences
  int64_t data_begins = 0;         // place at which the present data's first epoch began
  int64_t sequences = 0;           // of the training data; 0 if unknown
  int64_t tokens = 0;              // unmasked tokens so far
  int64_t steps_skipped = 0;       // steps without an update: no unmasked token in the batch
  uint64_t seed = 0;
  std::string base_digest;
  std::string data_digest;                 // of the training data; empty if unknown
  std::string config_digest;               // of the settings that fix the mathematics
  std::vector<std::string> settings = {};  // "PATH: VALUE" of what the run was made with
  std::vector<std::string> changes = {};  // of the settings and the data over all resumes, in words

  bool operator==(const TrainingCounters&) const = default;
};

struct TrainingState {
  TrainingCounters counters;
  Adapter adapter;
  // Moments of each tensor of the adapter stand in the tensor's place.
  AdapterValues first_moment, second_moment;
};

// Writes the files of a checkpoint but for its manifest into a directory; returns their SHA-256 by
// name.
using FillCheckpoint = std::function<std::map<std::string, std::string>(const fs::path& dir)>;

// Writes RUN/checkpoints/step-NNNNNN in one rename after fsync, then RUN/checkpoints/latest;
// removes what killed runs left half-written and all but the newest `keep_last` checkpoints up to
// this step (0 keeps all), but for those in which a user has put files. One that stands under the
// same number (damaged, and passed over when the run resumed) is replaced. On any failure nothing
// but whole checkpoints remains: Error, status 3. What cannot or should not be removed is no
// failure: returns one line for each. REQUIRES: called by one rank.
std::vector<std::string> save_checkpoint(const fs::path& run_dir, const TrainingState& state,
                                         int64_t keep_last);
std::vector<std::string> save_checkpoint(const fs::path& run_dir, const TrainingCounters& counters,
                                         const FillCheckpoint& fill, int64_t keep_last);

struct LoadedCheckpoint {
  TrainingState state;
  fs::path path;
  std::vector<std::string> notes;  // damaged newer checkpoints that were passed over, by name
};

// The newest whole checkpoint of a run, or nothing if there is none. Checks inventory, digests (not
// files that a user has put there),
// shapes (against `modules` and `tensors`, as read_adapter) and finiteness. If checkpoints exist
// and all are damaged: Error, status 2.
std::optional<LoadedCheckpoint> load_newest_checkpoint(const fs::path& run_dir,
                                                       const std::vector<LinearModule>& modules,
                                                       const std::vector<TensorSpec>& tensors = {});

// As load_newest_checkpoint() for a run of full fine-tuning of a model with these tensors, whose
// state remains in the files (WeightStateFiles): the counters alone are loaded.
std::optional<LoadedCheckpoint> load_newest_weights_checkpoint(
    const fs::path& run_dir, const std::vector<TensorSpec>& tensors);

// Whether `dir` is the directory of one checkpoint (it may be damaged).
bool is_checkpoint(const fs::path& dir);

// What the checkpoint in `dir` is, line by line, for `inspect`. Checks the inventory, every digest
// and all values; Error (status 2) names what is damaged.
std::vector<std::string> inspect_checkpoint(const fs::path& dir);

}  // namespace lorashard
