#include "trainer/dataset.h"

#include <unicode/utf8.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "checkpoint/file_io.h"
#include "checkpoint/json_strict.h"
#include "configs/error.h"

namespace lorashard {
namespace {

using nlohmann::json;

constexpr uint64_t kCheckedBytes = 32 << 20;  // a fraction of a second

// What is wrong with a line; get adds the place, which takes a pass over the file to find.
struct LineProblem {
  std::string what;
};

// A piece of a line, fit for an error's one line.
std::string excerpt(const std::string& text) {
  constexpr size_t kLongest = 160;
  return text.size() <= kLongest ? printable(text) : printable(text.substr(0, kLongest)) + "...";
}

void require_utf8(const std::string& line) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(line.data());
  const int32_t size = static_cast<int32_t>(line.size());  // at most 256 MiB
  for (int32_t at = 0; at < size;) {
    if (bytes[at] != 0 && bytes[at] < 0x80) {
      ++at;
      continue;
    }
    const int32_t start = at;
    UChar32 c;
    U8_NEXT(bytes, at, size, c);
    if (c < 0)
      throw LineProblem{"invalid UTF-8 at byte " + std::to_string(start + 1) +
                        " of the line, expected UTF-8 text"};
    // The JSON library would take it for the end of the line.
    if (c == 0)
      throw LineProblem{"a NUL at byte " + std::to_string(start + 1) +
                        " of the line, expected one JSON object"};
  }
}

json parse_object(const std::string& line, const char* expected) {
  require_utf8(line);
  json object;
  try {
    object = json::parse(line);
  } catch (const json::exception& e) {
    // Of "[json.exception.parse_error.101] parse error at line 1, column 9: syntax error …" the
    // part after the column, which we say ourselves.
    std::string reason = e.what();
    const auto* parse_error = dynamic_cast<const json::parse_error*>(&e);
    if (const size_t colon = reason.find(": "); parse_error && colon != std::string::npos)
      reason = reason.substr(colon + 2);
    throw LineProblem{"not JSON (" +
                      (parse_error ? "byte " + std::to_string(parse_error->byte) + ": " : "") +
                      excerpt(reason) + "), expected " + expected};
  }
  if (!object.is_object())
    throw LineProblem{std::string("a JSON ") + object.type_name() + ", expected " + expected};
  return object;
}

const json& field(const json& object, const char* name, const char* expected) {
  const auto found = object.find(name);
  if (found != object.end()) return *found;
  std::string names;
  for (const auto& item : object.items())
    names.append(names.empty() ? "\"" : ", \"").append(item.key()).append("\"");
  throw LineProblem{std::string("no field \"") + name + "\" (" +
                    (names.empty() ? "the object is empty" : "there is " + excerpt(names)) +
                    "), expected " + expected};
}

const std::string& text_field(const json& object, const char* name, const char* expected) {
  const json& value = field(object, name, expected);
  if (!value.is_string())
    throw LineProblem{std::string("\"") + name + "\" is of type " + value.type_name() +
                      ", expected a string"};
  return value.get_ref<const std::string&>();
}

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

}  // namespace

int64_t count_unmasked(const Example& example) {
  return std::count_if(example.labels.begin() + !example.labels.empty(), example.labels.end(),
                       [](int32_t label) { return label != kIgnoredLabel; });
}

std::shared_ptr<const Dataset> Dataset::open(const std::string& path, DatasetOptions options) {
  auto dataset = std::make_shared<const Dataset>(path, std::move(options));
  if (dataset->size() == 0)
    fail_input(path, "no sequences, expected at least one JSON object a line");
  if (dataset->index_.file_bytes() <= kCheckedBytes)
    for (int64_t i = 0; i < dataset->size(); ++i) dataset->parse(i, false);
  return dataset;
}

Dataset::Dataset(const std::string& path, DatasetOptions options)
    : index_(path), options_(std::move(options)) {
  if (options_.format == RunConfig::Data::CHAT)
    fail_input(path, "data.format CHAT is not supported by this version");
}

Example Dataset::get(int64_t i) const { return parse(i, true); }

Example Dataset::parse(int64_t i, bool tokenize) const try {
  Example example;
  const std::string line = index_.line(i);
  size_t unlabelled = 0;
  if (options_.format == RunConfig::Data::TOKENS) {
    const char* expected = R"({"input_ids": [...], "labels": [...]})";
    const json object = parse_object(line, expected);
    example.input_ids =
        id_field(field(object, "input_ids", expected), "input_ids", options_.vocab_size, false);
    example.labels = object.contains("labels")
                         ? id_field(object["labels"], "labels", options_.vocab_size, true)
                         : example.input_ids;
    if (example.labels.size() != example.input_ids.size())
      throw LineProblem{"\"labels\" has " + std::to_string(example.labels.size()) +
                        " values and \"input_ids\" " + std::to_string(example.input_ids.size()) +
                        ", expected as many"};
  } else {
    std::string text;
    std::optional<std::string> prompt;
    if (options_.format == RunConfig::Data::TEXT) {
      const char* expected = R"({"text": "..."})";
      text = text_field(parse_object(line, expected), "text", expected);
    } else {
      const char* expected = R"({"prompt": "...", "completion": "..."})";
      const json object = parse_object(line, expected);
      prompt = text_field(object, "prompt", expected);
      text = *prompt + text_field(object, "completion", expected);
    }
    if (!tokenize) return example;
    example.input_ids = options_.encode(text, true);
    if (prompt) {
      const std::vector<int32_t> ids = options_.encode(*prompt, true);
      unlabelled = std::min(ids.size(), example.input_ids.size());
      if (!std::equal(ids.begin(), ids.begin() + unlabelled, example.input_ids.begin()) ||
          ids.size() > example.input_ids.size())
        ++mismatches_;
    }
    if (options_.append_eos && options_.eos_id &&
        (example.input_ids.empty() || example.input_ids.back() != *options_.eos_id))
      example.input_ids.push_back(*options_.eos_id);
    for (const int32_t id : example.input_ids)
      if (id < 0 || id >= options_.vocab_size)
        throw LineProblem{"the tokenizer gives id " + std::to_string(id) +
                          " and the model's vocabulary has " + std::to_string(options_.vocab_size) +
                          " entries, expected the model's own tokenizer"};
    example.labels = example.input_ids;
    std::fill_n(example.labels.begin(), unlabelled, kIgnoredLabel);
  }
  if (example.input_ids.empty())
    throw LineProblem{"a sequence of no tokens, expected at least one"};
  if (const size_t longest = options_.seq_len; example.input_ids.size() > longest) {
    if (options_.long_sequences == RunConfig::Data::REFUSE)
      throw LineProblem{"a sequence of " + std::to_string(example.input_ids.size()) +
                        " tokens, expected at most data.seq_len = " + std::to_string(longest) +
                        " (or data.long_sequences: TRUNCATE)"};
    example.input_ids.resize(longest);
    example.labels.resize(longest);
    example.truncated = true;
    if (tokenize) ++truncated_;
  }
  return example;
} catch (const LineProblem& problem) {
  const bool changed = !(identify_file(index_.path()) == index_.identity());
  fail_input(index_.where(i),
             problem.what + (changed ? "; the file was changed after it had been opened" : ""));
}

}  // namespace lorashard
