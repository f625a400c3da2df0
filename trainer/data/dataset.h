// The sequences of one JSONL file, read and tokenized when asked for. The file is indexed and not
// loaded (trainer/data/jsonl_index.h), and must not change while it is open.
//
// Fields are those of TRL's SFTTrainer (RunConfig.Data.Format); what other fields of a line may be
// is said in trainer/data/data_columns.h.
//   TEXT               {"text"}; every token is unmasked.
//   PROMPT_COMPLETION  {"prompt","completion"}; both are tokenized as one text, and tokens that
//                      begin in the prompt, one that spans the border too, are masked. Special
//                      tokens before the completion belong to the prompt, those behind it to the
//                      completion.
//   TOKENS             trainer/data/token_row.h
//   PREFERENCE, PREFERENCE_TOKENS  trainer/data/preference_row.h
// With append_eos, TEXT, PROMPT_COMPLETION and both completions of PREFERENCE end with the
// end-of-sequence token, unmasked too, unless the ids end with it already.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "configs/run_config.pb.h"
#include "trainer/data/data_columns.h"
#include "trainer/data/jsonl_index.h"
#include "trainer/data/tokenizer/text_span.h"

namespace lorashard {

inline constexpr int32_t kIgnoredLabel = -100;

// labels[i] belongs to input_ids[i] (the model's shift is not done yet); both have the same size,
// 1 to seq_len; of a preference format two sequences of at most seq_len.
struct Example {
  std::vector<int32_t> input_ids, labels;
  std::vector<int32_t> starts;  // where sequences behind the first begin: a row may hold several,
                                // which do not see each other (TOKENS, pairs); the token there is
                                // masked
  bool truncated = false;       // it had more than seq_len tokens
  bool spans_border = false;    // a token is part of both prompt and completion
  bool equal_pair = false;      // of a preference format: both sequences are the same after the cut
  bool bos_twice = false;       // the text begins with the token that the tokenizer puts before it
  ColumnNames other_columns;    // that no format reads
};

// Unmasked tokens: those whose label is not -100, with a token before them in their sequence.
int64_t count_unmasked(const Example& example);

struct DatasetOptions {
  RunConfig::Data::Format format = RunConfig::Data::TEXT;
  int64_t seq_len = 512;
  RunConfig::Data::LongSequences long_sequences = RunConfig::Data::TRUNCATE;
  bool append_eos = true;
  bool add_bos = true;     // keep `leading_ids`
  int64_t vocab_size = 0;  // of the model; ids and labels lie below it
  // The tokenizer, special tokens added; not used by TOKENS. The text is valid UTF-8. `spans`,
  // unless null, receives where each token comes from. Called from several threads if get is.
  std::function<std::vector<int32_t>(std::string_view text, std::vector<TextSpan>* spans)> encode;
  std::vector<int32_t> leading_ids;  // what encode puts before every text
  std::optional<int32_t> eos_id;     // none: nothing is appended
  std::vector<std::string> notes;    // of the tokenizer, for the user
};

class Dataset {
 public:
  // Indexes the file; up to 32 MiB it also checks the JSON and the fields of every line, so that a
  // broken line ends the run before it starts. Errors (status 2): as JsonlIndex; no sequences; as
  // get.
  static std::shared_ptr<const Dataset> open(const std::string& path, DatasetOptions options);

  Dataset(const std::string& path, DatasetOptions options);

  int64_t size() const { return index_.size(); }

  // Sequence i in the file's order; may be called from several threads. Errors (status 2) read
  // "FILE:LINE: …": invalid UTF-8 (with the byte), no JSON object, a field missing or of another
  // type, columns that this format does not read, lists of another length, ids outside the
  // vocabulary, no tokens, and more than seq_len tokens under REFUSE. REQUIRES: 0 <= i < size().
  Example get(int64_t i) const;

  // "FILE:LINE" of sequence i; reads the file up to there.
  std::string where(int64_t i) const { return index_.where(i); }
  // The file as it was when it was opened.
  const FileIdentity& identity() const { return index_.identity(); }

  const DatasetOptions& options() const { return options_; }

 private:
  Example parse(int64_t i, bool tokenize) const;
  nlohmann::json parse_object(int64_t i, const std::string& line, const char* expected) const;
  void encode_text(const std::string& text, std::optional<size_t> prompt_bytes, Example& example,
                   bool ends = true) const;
  Example parse_preference(int64_t i, const std::string& line, bool tokenize) const;
  std::vector<int32_t> encode_part(const std::string& text, bool ends, bool* bos_twice) const;

  JsonlIndex index_;
  DatasetOptions options_;
};

}  // namespace lorashard
