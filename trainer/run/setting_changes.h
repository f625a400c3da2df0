// The settings that make a run what it is: checkpoints record them, and a resume names those that
// have changed since.
#pragma once

#include <string>
#include <vector>

#include "configs/config.h"

namespace lorashard {

// "PATH: VALUE" of every setting that decides what a run computes, but for those that something
// else stands for: the base and the training file (their digests) and the factors (their shapes).
// Left out is what a run may change at any time without effect on its results, but for rounding:
// layout, micro-batch, threads, intervals, folders.
std::vector<std::string> recorded_settings(const RunConfig& run);

struct SettingChange {
  std::string path, before, after;
  // It decides which tokens a step sees, so that the run would no longer be the one that began:
  // only with --accept-changes.
  bool to_accept = false;

  std::string text() const { return path + " " + before + " -> " + after; }
};

// From `before` to `now`, both as recorded_settings returns them; a setting that `before` does not
// know had its default.
std::vector<SettingChange> changed_settings(const std::vector<std::string>& before,
                                            const std::vector<std::string>& now);

}  // namespace lorashard
