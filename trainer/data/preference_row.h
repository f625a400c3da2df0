// A line of a preference format: one pair of sequences, prompt + chosen and prompt + rejected,
// whose completions alone are unmasked. As in TRL's DPOTrainer:
//   PREFERENCE         {"prompt","chosen","rejected"}, texts. Prompt, prompt + chosen and prompt +
//                      rejected are tokenized each as one text; the prompt's tokens are those that
//                      all three begin with. Without "prompt" it is what chosen and rejected begin
//                      with, as TRL's extract_prompt cuts it.
//   PREFERENCE_TOKENS  {"prompt_ids","chosen_ids","rejected_ids"}, ids as they are: no special
//   token
//                      is added.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "trainer/data/dataset.h"

namespace lorashard {

struct PreferenceTexts {
  std::string prompt, chosen, rejected;
};
// LineProblem: a field missing or no string; an empty or equal chosen and rejected.
PreferenceTexts read_preference_texts(const nlohmann::json& row);

struct PreferenceIds {
  std::vector<int32_t> prompt, chosen, rejected;
  bool prompt_cut = false;  // the prompt's last tokens are others before a completion
};
// LineProblem: a field missing or no list of ids below vocab_size; chosen and rejected empty or
// equal.
PreferenceIds read_preference_ids(const nlohmann::json& row, int64_t vocab_size);
// Of three tokenized texts: prompt, prompt + chosen, prompt + rejected. LineProblem: chosen and
// rejected empty or equal.
PreferenceIds split_preference(const std::vector<int32_t>& prompt,
                               const std::vector<int32_t>& chosen,
                               const std::vector<int32_t>& rejected);

// The pair as one example of two sequences, each cut to options.seq_len from its start.
// LineProblem: too long under REFUSE; a sequence in which no token of the completion, with one
// before it, is left.
Example preference_example(const PreferenceIds& ids, const DatasetOptions& options);

}  // namespace lorashard
