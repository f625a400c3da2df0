// The training run: from a checked config to RUN/adapter.
#pragma once

#include <functional>

#include "configs/config.h"
#include "trainer/session.h"

namespace lorashard {

struct TrainOptions {
  bool resume = false;
  // Where to write what each rank did when, in Chrome's trace format; empty: nowhere.
  std::string profile;
  // The signal that asks for an end (SIGINT, SIGTERM), or 0. Looked at once a step.
  std::function<int()> stop_signal = [] { return 0; };
};

// Trains as `config` says; every rank calls it. Returns the exit status: 0, or 130 or 143 when a
// signal ended the run after a checkpoint. Errors that every rank meets alike have on_all_ranks
// set.
int train(const Config& config, const Ranks& ranks, const TrainOptions& options);

// Loss and perplexity on data.eval, of the base or with an adapter (empty: none), printed by one
// rank.
int evaluate(const Config& config, const std::string& adapter_dir, const Ranks& ranks);

}  // namespace lorashard
