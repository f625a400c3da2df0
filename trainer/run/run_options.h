// The settings of a run as options of the parts that they are for. What a setting means is said
// here alone; the parts know no RunConfig.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "checkpoint/base_model.h"
#include "checkpoint/training_state.h"
#include "configs/config.h"
#include "trainer/data/dataset.h"
#include "trainer/model/model.h"
#include "trainer/run/optimizer.h"

namespace lorashard {

// How data files are read, with the base's tokenizer unless the format is TOKENS. Errors (status 2)
// are the tokenizer's.
DatasetOptions dataset_options(const RunConfig& run, const BaseModel& base);

// Of a model that only computes losses.
ModelOptions eval_options(const RunConfig& run);
// Of one that trains on this stream, on one of `host_ranks` ranks that share the host's memory.
ModelOptions training_options(const RunConfig& run, const Stream& stream, int host_ranks);

// Optimizer steps of the run in all, its length, where it stands as `counters` say; and the setting
// that gives it.
int64_t run_steps(const RunConfig& run, const TrainingCounters& counters);
std::string length_setting(const RunConfig& run);

// Of train.method FULL: the type of the weights that layers read, and what of the config has no
// effect, a line for each setting.
// Error (status 2) at `where` for a family that it cannot train.
void check_full(const ModelConfig& model, const std::string& where);
DType full_weight_type(const RunConfig& run);
std::vector<std::string> full_notes(const Config& config);
// Of the weights that it writes; none: as the base has them.
std::optional<DType> model_dtype(const RunConfig& run);

OptimizerSettings optimizer_settings(const RunConfig& run);
// In optimizer step `step` of `steps`, which counts from 0.
double learning_rate(const RunConfig& run, int64_t step, int64_t steps);

// The files that decide what train or eval computes, on which the ranks must agree
// (agree_on_inputs): the data first. `adapter` may be empty.
std::vector<std::string> training_files(const RunConfig& run);
std::vector<std::string> eval_files(const RunConfig& run, const std::string& adapter);

}  // namespace lorashard
