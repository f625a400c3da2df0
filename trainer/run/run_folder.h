// RUN/: the resolved config and those before it, metrics.jsonl, checkpoints/ and adapter/. One rank
// writes it.
#pragma once

#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "checkpoint/file_io.h"
#include "checkpoint/file_lock.h"
#include "configs/config.h"
#include "kernels/preference.h"

namespace lorashard {

// One line of metrics.jsonl.
struct StepMetrics {
  int64_t step = 0;            // counts from 1
  double epoch = 0;            // visits of the present data so far; 1.5: half of the second
  std::optional<double> loss;  // none without an unmasked token: no update was made
  double learning_rate = 0, grad_norm = 0;
  int64_t tokens = 0;    // input tokens of the step, all ranks
  int64_t unmasked = 0;  // tokens that the loss is the mean of
  double step_time_s = 0, tokens_per_s = 0;
  double peak_rss_mib = 0;  // of the largest rank
  std::optional<double> eval_loss;
  std::optional<PreferenceTotals> pairs, eval_pairs;  // means over the pairs, of preference formats
};

PreferenceTotals mean_of(const PreferenceTotals& sum, int64_t pairs);
// " rewards_margin 0.1234 rewards_accuracy 0.7500".
std::string format_pairs(const PreferenceTotals& mean);

// The console line of a step.
std::string format_step(const StepMetrics& m, int64_t steps);

// metrics.jsonl, appended line by line. After a resume at step s, what later steps had written is
// dropped first, so that each step stands once.
class MetricsFile {
 public:
  // Keeps the lines of steps <= keep_steps of an existing file.
  MetricsFile(const fs::path& run_dir, int64_t keep_steps);
  ~MetricsFile();
  MetricsFile(const MetricsFile&) = delete;
  MetricsFile& operator=(const MetricsFile&) = delete;
  void append(const StepMetrics& m);

 private:
  fs::path path_;
  std::FILE* file_;
};

// Without `resume`, a folder that holds a run is refused (Error, status 2). Creates nothing.
void check_run_folder(const Config& config, bool resume);

// Creates the folder, if it may be used (check_run_folder), and takes it for this job: Error
// (status 2) naming the job that works in it, if there is one.
std::unique_ptr<FolderLock> open_run_folder(const Config& config, bool resume);

// Calls body, which writes into the run folder. An Error (status 3) in it gets the way on added:
// after what failed is mended, --resume.
void write_run(const std::function<void()>& body);

// Writes RUN/config.textproto, of the run that is at `step`. What it said before, if that was
// something else, is kept as RUN/configs/until-step-NNNNNN.textproto. To be called when nothing can
// be refused any more, so that a refused resume leaves the run's own.
void write_run_config(const RunConfig& resolved, int64_t step);

}  // namespace lorashard
