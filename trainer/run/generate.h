// Text from the base, and from adapters swapped on it one after the other, with a key/value cache.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/run/compute.h"

namespace lorashard {

struct GenerateOptions {
  std::string model, prompt;
  std::vector<std::string> adapters;  // none: the base alone; "base" among several: the base
  int64_t max_new_tokens = 64;
  double temperature = 0;  // 0: greedy
  double top_p = 1;
  uint64_t seed = 0;
  DType type = DType::F32;
  RunConfig::Compute::Backend::Value backend = RunConfig::Compute::Backend::AUTO;
  int64_t threads = 0;
};

// Index of the largest logit, or a sample of softmax(logits / temperature) among the fewest tokens
// whose probability reaches top_p. The draw is a function of (seed, position).
int32_t pick_token(const float* logits, int64_t vocab, double temperature, double top_p,
                   uint64_t seed, int64_t position);

// Prints prompt and continuation, one text an adapter. All ranks of the job form one
// tensor-parallel group. Returns the exit status.
int generate(const GenerateOptions& options, const Ranks& ranks);

}  // namespace lorashard
