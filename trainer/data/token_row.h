// A line of format TOKENS: {"input_ids", "labels", "attention_mask", "position_ids"}, the last
// three optional, all as long as input_ids and aligned with it as in Hugging Face.
//   labels          -100: masked; absent: every token is unmasked.
//   attention_mask  0 or 1; 0: there is no token, wherever it stands. It is dropped with its label.
//   position_ids    count up by one; 0 behind another token begins a new sequence, which does not
//                   see those before it. A first token may also have its place in the row (what
//                   stands before it is padding: attention knows distances only). Any other order
//                   is an error. Under mask 0 they mean nothing.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <vector>

namespace lorashard {

struct TokenRow {
  std::vector<int32_t> input_ids, labels;
  std::vector<int32_t> starts;  // where sequences behind the first begin
};

// LineProblem: a column missing, of another type or length, or with values that it cannot have.
TokenRow read_token_row(const nlohmann::json& row, int64_t vocab_size);

// A list of ids from 0 to vocab_size - 1. LineProblem: anything else, by the column's name.
std::vector<int32_t> read_ids(const nlohmann::json& value, const char* name, int64_t vocab_size);

}  // namespace lorashard
