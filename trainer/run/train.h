// The training run: from a checked config to RUN/adapter.
#pragma once

#include <functional>

#include "configs/config.h"
#include "trainer/run/compute.h"

namespace lorashard {

struct TrainOptions {
  bool resume = false;
  // Resume also where the data, their settings, the batch or the seed are not the run's.
  bool accept_changes = false;
  // Where to write what each rank did when, in Chrome's trace format; empty: nowhere.
  std::string profile;
  // Called before the all-reduce that ends this run's first step: as soon as one rank has left it
  // there is something to save.
  std::function<void()> first_step_ends = [] {};
  // The signal that asks for an end (SIGINT, SIGTERM), or 0. Looked at at the end of each step.
  std::function<int()> stop_signal = [] { return 0; };
  // Looks at it between the micro-batches of long steps and of evaluation too. A step so left is
  // forgotten: the checkpoint is that of the step before.
  bool stop_within_steps = false;
};

// Trains as `config` says; every rank calls it. Returns the exit status: 0, or 130 or 143 when a
// signal ended the run after a checkpoint. Errors that every rank meets alike have on_all_ranks
// set.
int train(const Config& config, const Ranks& ranks, const TrainOptions& options);

// Loss and perplexity on data.eval, of the base or with an adapter (empty: none), printed by one
// rank.
int evaluate(const Config& config, const std::string& adapter_dir, const Ranks& ranks);

}  // namespace lorashard
