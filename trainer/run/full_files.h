// Between the weights of full fine-tuning and files: the base that they begin as, checkpoints, and
// RUN/model. As for an adapter one rank touches the run folder, so that it need not be shared; what
// it writes comes to it, and what it reads goes to the others, block of rows by block of rows.
#pragma once

#include <string>
#include <vector>

#include "checkpoint/base_model.h"
#include "checkpoint/training_state.h"
#include "configs/config.h"
#include "trainer/run/full_weights.h"
#include "trainer/run/resume.h"

namespace lorashard {

// The weights of the base, which this rank reads from its own files.
void load_base_weights(FullWeights& weights, const BaseModel& base);

// As load_run() and share_run() for a run of full fine-tuning. Errors as load_run(), on all ranks.
// `ready` is called on the first rank before anything is loaded, unless the run is finished.
// Collective over `host`.
ResumedRun resume_weights(const fs::path& run_dir, FullWeights& weights, TrainingCounters& counters,
                          const Config& config, bool accept_changes, Communicator& host,
                          const std::function<void()>& ready);

// As save_run(). Collective: returns notes on the first rank.
std::vector<std::string> save_weights(const fs::path& run_dir, const FullWeights& weights,
                                      const TrainingCounters& counters, int64_t keep_last,
                                      bool first);

// RUN/model: what export would write of the trained weights. Of an earlier one its files are
// replaced. Collective; the first rank writes.
void save_final_model(const fs::path& run_dir, const FullWeights& weights, const BaseModel& base,
                      std::optional<DType> dtype, int64_t step, bool first);

}  // namespace lorashard
