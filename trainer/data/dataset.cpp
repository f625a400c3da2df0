#include "trainer/data/dataset.h"

#include <unicode/utf8.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "checkpoint/file_io.h"
#include "checkpoint/json_strict.h"
#include "configs/config.h"
#include "configs/error.h"
#include "trainer/data/line_problem.h"
#include "trainer/data/preference_row.h"
#include "trainer/data/token_row.h"

namespace lorashard {
namespace {

using nlohmann::json;

constexpr uint64_t kCheckedBytes = 32 << 20;  // a fraction of a second

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

// The first character that is no white space, 0 if there is none.
char first_character(const std::string& line) {
  const size_t at = line.find_first_not_of(" \t\r");
  return at == std::string::npos ? '\0' : line[at];
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

// How many of the ids the tokenizer has put before the text.
size_t count_leading(const std::vector<int32_t>& leading, const std::vector<int32_t>& ids) {
  const bool there =
      leading.size() <= ids.size() && std::equal(leading.begin(), leading.end(), ids.begin());
  return there ? leading.size() : 0;
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

json Dataset::parse_object(int64_t i, const std::string& line, const char* expected) const {
  require_utf8(line);
  const std::string one = std::string("expected one object a line, ") + expected;
  json object;
  try {
    object = json::parse(line);
  } catch (const json::exception& e) {
    // Files of one array, and objects that are written over several lines.
    if (i == 0 && first_character(line) == '[')
      throw LineProblem{"the file is a JSON array, " + one + " (jq -c '.[]' FILE writes it so)"};
    // Of "[json.exception.parse_error.101] parse error at line 1, column 9: syntax error …" the
    // part after the column, which we say ourselves.
    std::string reason = e.what();
    const auto* parse_error = dynamic_cast<const json::parse_error*>(&e);
    const bool unfinished = parse_error && parse_error->byte > line.size();
    if (unfinished && i + 1 < size() && first_character(index_.line(i + 1)) != '{')
      throw LineProblem{"an object that goes on in the next line, " + one +
                        " (jq -c . FILE writes it so)"};
    if (const size_t colon = reason.find(": "); parse_error && colon != std::string::npos)
      reason = reason.substr(colon + 2);
    throw LineProblem{"not JSON (" +
                      (parse_error ? "byte " + std::to_string(parse_error->byte) + ": " : "") +
                      excerpt(reason) + "), expected " + expected};
  }
  if (i == 0 && object.is_array())
    throw LineProblem{"the file is a JSON array, " + one + " (jq -c '.[]' FILE writes it so)"};
  if (!object.is_object())
    throw LineProblem{std::string("a JSON ") + object.type_name() + ", expected " + expected};
  return object;
}

// The ids and labels of a text, whose first `prompt_bytes` are a prompt if there is one. `ends`:
// the end-of-sequence token may be appended.
void Dataset::encode_text(const std::string& text, std::optional<size_t> prompt_bytes,
                          Example& example, bool ends) const {
  std::vector<TextSpan> spans;
  std::vector<int32_t>& ids = example.input_ids;
  ids = options_.encode(text, prompt_bytes ? &spans : nullptr);
  const size_t leading = count_leading(options_.leading_ids, ids);
  size_t unlabelled = 0;
  if (prompt_bytes) {
    const auto border = static_cast<int64_t>(*prompt_bytes);
    size_t prompt_end = leading, t = 0;  // behind the prompt's last token
    for (; t < spans.size() && (spans[t].special() || spans[t].begin < border); ++t) {
      if (spans[t].special()) continue;
      example.spans_border |= spans[t].end > border;
      prompt_end = t + 1;
    }
    // Special tokens with none of the completion's behind them close the text.
    unlabelled = t < spans.size() ? t : prompt_end;
  }
  if (options_.add_bos) {
    example.bos_twice = leading > 0 && leading < ids.size() && ids[leading] == ids[leading - 1];
  } else {
    ids.erase(ids.begin(), ids.begin() + static_cast<ptrdiff_t>(leading));
    unlabelled -= std::min(unlabelled, leading);
  }
  if (ends && options_.append_eos && options_.eos_id &&
      (ids.empty() || ids.back() != *options_.eos_id))
    ids.push_back(*options_.eos_id);
  for (const int32_t id : ids)
    if (id < 0 || id >= options_.vocab_size)
      throw LineProblem{"the tokenizer gives id " + std::to_string(id) +
                        " and the model's vocabulary has " + std::to_string(options_.vocab_size) +
                        " entries, expected the model's own tokenizer"};
  example.labels = ids;
  std::fill_n(example.labels.begin(), unlabelled, kIgnoredLabel);
}

// The ids of a prompt, or of a text that ends with a completion.
std::vector<int32_t> Dataset::encode_part(const std::string& text, bool ends,
                                          bool* bos_twice) const {
  Example example;
  encode_text(text, std::nullopt, example, ends);
  *bos_twice |= example.bos_twice;
  return std::move(example.input_ids);
}

Example Dataset::parse_preference(int64_t i, const std::string& line, bool tokenize) const {
  const bool has_ids = options_.format == RunConfig::Data::PREFERENCE_TOKENS;
  const char* expected =
      has_ids ? R"({"prompt_ids": [...], "chosen_ids": [...], "rejected_ids": [...]})"
              : R"({"prompt": "...", "chosen": "...", "rejected": "..."})";
  const json object = parse_object(i, line, expected);
  ColumnNames others;
  Example example;
  if (has_ids) {
    for (const char* name : {"prompt_ids", "chosen_ids", "rejected_ids"})
      field(object, name, expected);
    check_columns(object, options_.format, others);
    example = preference_example(read_preference_ids(object, options_.vocab_size), options_);
  } else {
    for (const char* name : {"chosen", "rejected"}) field(object, name, expected);
    check_columns(object, options_.format, others);
    const PreferenceTexts texts = read_preference_texts(object);
    if (tokenize) {
      bool bos_twice = false;
      const std::vector<int32_t> prompt = encode_part(texts.prompt, false, &bos_twice);
      const auto completion = [&](const std::string& text) {
        return encode_part(texts.prompt + text, true, &bos_twice);
      };
      example = preference_example(
          split_preference(prompt, completion(texts.chosen), completion(texts.rejected)), options_);
      example.bos_twice = bos_twice;
    }
  }
  example.other_columns = others;
  return example;
}

Example Dataset::parse(int64_t i, bool tokenize) const try {
  Example example;
  const std::string line = index_.line(i);
  if (is_preference(options_.format)) return parse_preference(i, line, tokenize);
  if (options_.format == RunConfig::Data::TOKENS) {
    const char* expected = R"({"input_ids": [...], "labels": [...]})";
    const json object = parse_object(i, line, expected);
    field(object, "input_ids", expected);
    check_columns(object, options_.format, example.other_columns);
    TokenRow row = read_token_row(object, options_.vocab_size);
    example.input_ids = std::move(row.input_ids);
    example.labels = std::move(row.labels);
    example.starts = std::move(row.starts);
  } else {
    const bool plain = options_.format == RunConfig::Data::TEXT;
    const char* expected =
        plain ? R"({"text": "..."})" : R"({"prompt": "...", "completion": "..."})";
    const json object = parse_object(i, line, expected);
    std::optional<size_t> prompt_bytes;
    std::string text = text_field(object, plain ? "text" : "prompt", expected);
    if (!plain) {
      prompt_bytes = text.size();
      text += text_field(object, "completion", expected);
    }
    check_columns(object, options_.format, example.other_columns);
    if (!tokenize) return example;
    encode_text(text, prompt_bytes, example);
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
    std::erase_if(example.starts, [&](int32_t start) { return size_t(start) >= longest; });
    example.truncated = true;
  }
  return example;
} catch (const LineProblem& problem) {
  const bool changed = !(identify_file(index_.path()) == index_.identity());
  fail_input(index_.where(i),
             problem.what + (changed ? "; the file was changed after it had been opened" : ""));
}

}  // namespace lorashard
