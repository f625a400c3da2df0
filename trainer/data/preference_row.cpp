#include "trainer/data/preference_row.h"

#include <algorithm>

#include "trainer/data/line_problem.h"
#include "trainer/data/token_row.h"

namespace lorashard {
namespace {

using nlohmann::json;
using Ids = std::vector<int32_t>;

const std::string& text(const json& row, const char* name) {
  const json& value = row.at(name);
  if (value.is_array())
    throw LineProblem{std::string("\"") + name +
                      "\" is a list (of messages?), which this version does not support; expected "
                      "a string"};
  if (!value.is_string())
    throw LineProblem{std::string("\"") + name + "\" is of type " + value.type_name() +
                      ", expected a string"};
  return value.get_ref<const std::string&>();
}

template <class Sequence>
void require_pair(const Sequence& chosen, const Sequence& rejected, const char* suffix) {
  const auto name = [&](const char* which) { return "\"" + std::string(which) + suffix + "\""; };
  for (const auto& [which, value] : {std::pair{"chosen", &chosen}, {"rejected", &rejected}})
    if (value->empty())
      throw LineProblem{name(which) + " is empty, expected a completion of one token or more"};
  if (chosen == rejected)
    throw LineProblem{name("chosen") + " and " + name("rejected") +
                      " are equal, expected two completions that differ"};
}

// TRL's extract_prompt: up to the first character that differs, without a space before it; where
// one text is the beginning of the other, without the last character of the shorter one. In bytes:
// never within a character of UTF-8.
size_t prompt_bytes(const std::string& chosen, const std::string& rejected) {
  const auto begins_character = [&](size_t at) {
    return at == 0 || (chosen[at] & '\xc0') != '\x80';
  };
  const size_t shorter = std::min(chosen.size(), rejected.size());
  size_t at =
      std::mismatch(chosen.begin(), chosen.begin() + ptrdiff_t(shorter), rejected.begin()).first -
      chosen.begin();
  if (at == shorter && at > 0) {
    do --at;
    while (!begins_character(at));
    return at;
  }
  while (at < chosen.size() && !begins_character(at)) --at;
  return at > 0 && chosen[at - 1] == ' ' ? at - 1 : at;
}

size_t common_prefix(const Ids& a, const Ids& b) {
  const size_t shorter = std::min(a.size(), b.size());
  return size_t(std::mismatch(a.begin(), a.begin() + ptrdiff_t(shorter), b.begin()).first -
                a.begin());
}

void append_sequence(Example& example, const Ids& prompt, const Ids& completion, const char* name,
                     const DatasetOptions& options) {
  const size_t longest = size_t(options.seq_len);
  const size_t whole = prompt.size() + completion.size(), size = std::min(whole, longest);
  if (whole > longest) {
    if (options.long_sequences == RunConfig::Data::REFUSE)
      throw LineProblem{"prompt and " + std::string(name) + " have " + std::to_string(whole) +
                        " tokens, expected at most data.seq_len = " + std::to_string(longest) +
                        " (or data.long_sequences: TRUNCATE)"};
    example.truncated = true;
  }
  const size_t masked = std::max<size_t>(prompt.size(), 1);  // nothing predicts a first token
  if (size <= masked)
    throw LineProblem{"no token of \"" + std::string(name) +
                      "\" is left that counts: the prompt has " + std::to_string(prompt.size()) +
                      " tokens, " + name + " " + std::to_string(completion.size()) +
                      " and data.seq_len is " + std::to_string(longest) +
                      "; expected one or more with a token before it within data.seq_len"};
  const size_t begin = example.input_ids.size();
  Ids& ids = example.input_ids;
  ids.insert(ids.end(), prompt.begin(), prompt.end());
  ids.insert(ids.end(), completion.begin(), completion.end());
  ids.resize(begin + size);
  example.labels.resize(begin + masked, kIgnoredLabel);
  example.labels.insert(example.labels.end(), ids.begin() + ptrdiff_t(begin + masked), ids.end());
}

}  // namespace

PreferenceTexts read_preference_texts(const json& row) {
  PreferenceTexts texts{"", text(row, "chosen"), text(row, "rejected")};
  if (row.contains("prompt") && !row["prompt"].is_null()) {
    texts.prompt = text(row, "prompt");
  } else if (texts.chosen != texts.rejected) {
    const size_t prompt = prompt_bytes(texts.chosen, texts.rejected);
    texts.prompt = texts.chosen.substr(0, prompt);
    texts.chosen.erase(0, prompt);
    texts.rejected.erase(0, prompt);
  }
  require_pair(texts.chosen, texts.rejected, "");
  return texts;
}

PreferenceIds read_preference_ids(const json& row, int64_t vocab_size) {
  PreferenceIds ids;
  ids.prompt = read_ids(row.at("prompt_ids"), "prompt_ids", vocab_size);
  ids.chosen = read_ids(row.at("chosen_ids"), "chosen_ids", vocab_size);
  ids.rejected = read_ids(row.at("rejected_ids"), "rejected_ids", vocab_size);
  require_pair(ids.chosen, ids.rejected, "_ids");
  return ids;
}

PreferenceIds split_preference(const Ids& prompt, const Ids& chosen, const Ids& rejected) {
  const size_t shared = std::min(common_prefix(prompt, chosen), common_prefix(prompt, rejected));
  const auto border = ptrdiff_t(shared);
  PreferenceIds ids{.prompt = Ids(prompt.begin(), prompt.begin() + border),
                    .chosen = Ids(chosen.begin() + border, chosen.end()),
                    .rejected = Ids(rejected.begin() + border, rejected.end()),
                    .prompt_cut = shared < prompt.size()};
  if (ids.chosen == ids.rejected)
    throw LineProblem{
        "\"chosen\" and \"rejected\" have equal tokens, expected two completions that differ"};
  return ids;
}

Example preference_example(const PreferenceIds& ids, const DatasetOptions& options) {
  Example example;
  append_sequence(example, ids.prompt, ids.chosen, "chosen", options);
  const auto second = int32_t(example.input_ids.size());
  append_sequence(example, ids.prompt, ids.rejected, "rejected", options);
  example.starts.push_back(second);
  example.spans_border = ids.prompt_cut;
  const auto middle = example.input_ids.begin() + second;
  example.equal_pair =
      std::equal(example.input_ids.begin(), middle, middle, example.input_ids.end());
  return example;
}

}  // namespace lorashard
