#include "trainer/data/data_columns.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <string_view>
#include <vector>

#include "trainer/data/line_problem.h"

namespace lorashard {
namespace {

// Columns that transformers, TRL or their collators read, and that say what a row is, which of its
// tokens are masked, and how much each weighs.
const std::set<std::string_view> kMeaningful = {
    // other formats
    "text", "prompt", "completion", "messages", "conversations", "tools", "chat_template",
    "chat_template_kwargs", "chosen", "rejected", "prompt_ids", "completion_ids", "chosen_ids",
    "rejected_ids", "ref_chosen_logps", "ref_rejected_logps", "prompt_input_ids",
    "chosen_input_ids", "rejected_input_ids",
    // tokens and what they see
    "input_ids", "labels", "label_ids", "attention_mask", "position_ids", "token_type_ids",
    "inputs_embeds", "decoder_input_ids", "seq_lengths", "seq_idx", "cu_seqlens", "cu_seq_lens",
    "cu_seq_lens_q", "cu_seq_lens_k",
    // which tokens are masked, and how much each weighs
    "completion_mask", "assistant_masks", "assistant_mask", "prompt_mask", "loss_mask", "weight",
    "weights", "loss_weight", "loss_weights", "sample_weight", "sample_weights",
    // what is not text
    "image", "images", "pixel_values", "video", "videos", "audio", "audios", "input_features"};

const std::vector<std::string_view>& columns_of(RunConfig::Data::Format format) {
  static const std::vector<std::string_view> text = {"text"};
  static const std::vector<std::string_view> prompt = {"prompt", "completion"};
  static const std::vector<std::string_view> tokens = {"input_ids", "labels", "attention_mask",
                                                       "position_ids"};
  static const std::vector<std::string_view> pair = {"prompt", "chosen", "rejected"};
  static const std::vector<std::string_view> pair_ids = {"prompt_ids", "chosen_ids",
                                                         "rejected_ids"};
  switch (format) {
    case RunConfig::Data::TEXT:
      return text;
    case RunConfig::Data::TOKENS:
      return tokens;
    case RunConfig::Data::PREFERENCE:
      return pair;
    case RunConfig::Data::PREFERENCE_TOKENS:
      return pair_ids;
    default:
      return prompt;
  }
}

constexpr std::string_view kSeparator = ", ", kMore = "...";

std::set<std::string> split(std::string_view text) {
  std::set<std::string> names;
  while (!text.empty()) {
    const size_t end = std::min(text.find(kSeparator), text.size());
    names.emplace(text.substr(0, end));
    text.remove_prefix(std::min(end + kSeparator.size(), text.size()));
  }
  return names;
}

}  // namespace

void ColumnNames::join(const std::set<std::string>& names) {
  std::string all;
  bool whole = !names.contains(std::string(kMore));
  for (const std::string& name : names) {
    if (name == kMore) continue;
    const size_t room = sizeof text_ - 1 - kSeparator.size() - kMore.size();
    if (all.size() + kSeparator.size() + name.size() > room) {
      whole = false;
      break;
    }
    all.append(all.empty() ? "" : kSeparator).append(name);
  }
  if (!whole) all.append(all.empty() ? "" : kSeparator).append(kMore);
  std::memset(text_, 0, sizeof text_);
  std::memcpy(text_, all.data(), all.size());
}

void ColumnNames::add(const std::string& name) {
  const std::string quoted = "\"" + excerpt(name) + "\"";
  if (std::string_view(text_).find(quoted) != std::string_view::npos) return;
  std::set<std::string> names = split(text_);
  names.insert(quoted);
  join(names);
}

void ColumnNames::add(const ColumnNames& other) {
  if (std::strcmp(text_, other.text_) == 0) return;
  std::set<std::string> names = split(text_);
  names.merge(split(other.text_));
  join(names);
}

void check_columns(const nlohmann::json& row, RunConfig::Data::Format format, ColumnNames& others) {
  const std::vector<std::string_view>& ours = columns_of(format);
  for (const auto& [name, value] : row.items()) {
    if (std::find(ours.begin(), ours.end(), name) != ours.end()) continue;
    // The text that ids were made of says nothing that they don't.
    const bool source = (format == RunConfig::Data::TOKENS && name == "text") ||
                        (format == RunConfig::Data::PREFERENCE_TOKENS &&
                         (name == "prompt" || name == "chosen" || name == "rejected"));
    if (kMeaningful.contains(name) && !source && !value.is_null()) {
      throw LineProblem{"has the column \"" + name + "\", which data.format " +
                        RunConfig::Data::Format_Name(format) +
                        " does not read; remove it, or give the data in a format that says the "
                        "same"};
    }
    others.add(name);
  }
}

}  // namespace lorashard
