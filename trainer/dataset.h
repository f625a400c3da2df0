// The sequences of one JSONL file, read and tokenized when asked for. The file is indexed and not
// loaded (trainer/jsonl_index.h), and must not change while it is open.
//
// Fields are those of TRL's SFTTrainer (RunConfig.Data.Format); other fields of a line are ignored.
//   TEXT               {"text"}; every token is a label.
//   PROMPT_COMPLETION  {"prompt","completion"}; as in TRL, prompt and prompt + completion are
//                      tokenized, and as many tokens as the prompt has are no labels. Where the two
//                      differ in that part (a token spans the border), the line is still used and
//                      prompt_mismatches() counts it.
//   TOKENS             {"input_ids","labels"}, labels aligned with input_ids, -100 none; without
//                      "labels" every token is one.
// With append_eos, TEXT and PROMPT_COMPLETION end with the end-of-sequence token, a label too,
// unless the ids end with it already.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "configs/run_config.pb.h"
#include "trainer/jsonl_index.h"

namespace lorashard {

inline constexpr int32_t kIgnoredLabel = -100;

// labels[i] belongs to input_ids[i] (the model's shift is not done yet); both have the same size,
// 1 to seq_len.
struct Example {
  std::vector<int32_t> input_ids, labels;
  bool truncated = false;  // it had more than seq_len tokens
};

// Labels that count: those that are not -100 and have a token before them.
int64_t count_unmasked(const Example& example);

struct DatasetOptions {
  RunConfig::Data::Format format = RunConfig::Data::TEXT;
  int64_t seq_len = 512;
  RunConfig::Data::LongSequences long_sequences = RunConfig::Data::TRUNCATE;
  bool append_eos = true;
  int64_t vocab_size = 0;  // of the model; ids and labels lie below it
  // The tokenizer; not used by TOKENS. The text is valid UTF-8. Called from several threads if get
  // is.
  std::function<std::vector<int32_t>(std::string_view text, bool add_special_tokens)> encode;
  std::optional<int32_t> eos_id;  // none: nothing is appended
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
  // type, labels of another length, ids outside the vocabulary, no tokens, and more than seq_len
  // tokens under REFUSE. REQUIRES: 0 <= i < size().
  Example get(int64_t i) const;

  // "FILE:LINE" of sequence i; reads the file up to there.
  std::string where(int64_t i) const { return index_.where(i); }
  // The file as it was when it was opened.
  const FileIdentity& identity() const { return index_.identity(); }

  // Over all calls of get so far: sequences cut to seq_len; prompts that are no prefix.
  int64_t truncated_count() const { return truncated_; }
  int64_t prompt_mismatches() const { return mismatches_; }

 private:
  Example parse(int64_t i, bool tokenize) const;

  JsonlIndex index_;
  DatasetOptions options_;
  mutable std::atomic<int64_t> truncated_ = 0, mismatches_ = 0;
};

}  // namespace lorashard
