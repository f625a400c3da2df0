#include "trainer/data/token_row.h"

#include <optional>
#include <string>

#include "trainer/data/dataset.h"
#include "trainer/data/line_problem.h"

namespace lorashard {
namespace {

using nlohmann::json;

// `ignored`: whether -100 may stand in the list.
std::vector<int32_t> id_field(const json& value, const char* name, int64_t vocab_size,
                              bool ignored) {
  const std::string expected = "expected token ids from 0 to " + std::to_string(vocab_size - 1) +
                               (ignored ? " or -100" : "");
  if (!value.is_array())
    throw LineProblem{std::string("\"") + name + "\" is of type " + value.type_name() +
                      ", expected a list of token ids"};
  std::vector<int32_t> ids;
  ids.reserve(value.size());
  for (const json& id : value) {
    const bool fits = id.is_number_integer() &&
                      (!id.is_number_unsigned() || id.get<uint64_t>() < uint64_t(vocab_size)) &&
                      ((id.get<int64_t>() >= 0 && id.get<int64_t>() < vocab_size) ||
                       (ignored && id.get<int64_t>() == kIgnoredLabel));
    if (!fits)
      throw LineProblem{std::string("\"") + name + "\" has " + excerpt(id.dump()) +
                        " at position " + std::to_string(ids.size() + 1) + ", " + expected};
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

void require_size(const char* name, size_t size, size_t tokens) {
  if (size != tokens)
    throw LineProblem{std::string("\"") + name + "\" has " + std::to_string(size) +
                      " values and \"input_ids\" " + std::to_string(tokens) + ", expected as many"};
}

// A column of whole numbers that may be absent or null; true and false are 1 and 0.
std::optional<std::vector<int64_t>> number_field(const json& row, const char* name, size_t tokens,
                                                 int64_t highest, const char* expected) {
  const auto found = row.find(name);
  if (found == row.end() || found->is_null()) return std::nullopt;
  if (!found->is_array())
    throw LineProblem{std::string("\"") + name + "\" is of type " + found->type_name() +
                      ", expected a list of " + expected};
  std::vector<int64_t> numbers;
  for (const json& value : *found) {
    const bool whole = value.is_number_integer() &&
                       (!value.is_number_unsigned() || value.get<uint64_t>() <= uint64_t(highest));
    const int64_t number = value.is_boolean() ? value.get<bool>()
                           : whole            ? value.get<int64_t>()
                                              : -1;
    if (number < 0 || number > highest)
      throw LineProblem{std::string("\"") + name + "\" has " + excerpt(value.dump()) +
                        " at position " + std::to_string(numbers.size() + 1) + ", expected " +
                        expected};
    numbers.push_back(number);
  }
  require_size(name, numbers.size(), tokens);
  return numbers;
}

}  // namespace

std::vector<int32_t> read_ids(const json& value, const char* name, int64_t vocab_size) {
  return id_field(value, name, vocab_size, false);
}

TokenRow read_token_row(const json& row, int64_t vocab_size) {
  std::vector<int32_t> ids = id_field(row.at("input_ids"), "input_ids", vocab_size, false);
  std::vector<int32_t> labels =
      row.contains("labels") ? id_field(row["labels"], "labels", vocab_size, true) : ids;
  require_size("labels", labels.size(), ids.size());
  const auto mask = number_field(row, "attention_mask", ids.size(), 1, "0 or 1");
  const auto positions =
      number_field(row, "position_ids", ids.size(), INT32_MAX, "whole numbers from 0 on");
  if (!mask && !positions) return {std::move(ids), std::move(labels), {}};
  TokenRow kept;
  int64_t next = -1;  // the position that goes on with the sequence
  for (size_t i = 0; i < ids.size(); ++i) {
    if (mask && (*mask)[i] == 0) continue;
    const int64_t position = positions ? (*positions)[i] : next + (next < 0);
    const bool first = kept.input_ids.empty();
    if (!first && position == 0) kept.starts.push_back(int32_t(kept.input_ids.size()));
    if (position != 0 && position != next && !(first && position == int64_t(i)))
      throw LineProblem{"\"position_ids\" has " + std::to_string(position) + " at position " +
                        std::to_string(i + 1) + ", expected " +
                        (first ? "0" : std::to_string(next) + " or, for a new sequence, 0")};
    next = position + 1;
    kept.input_ids.push_back(ids[i]);
    // The first token of a sequence has none before it that could predict it.
    const bool predicted = first || position != 0;
    kept.labels.push_back(predicted ? labels[i] : kIgnoredLabel);
  }
  return kept;
}

}  // namespace lorashard
