// Executes the tokenizer.json of a Hugging Face directory: text to token ids and back.
//
// The ids equal those of Hugging Face tokenizers' encode(text, add_special_tokens). What can change
// ids and is not known here is refused by name when the file is read: models other than BPE,
// unknown components and unknown settings. truncation and padding are not applied, as transformers
// does not: it resets both at every call.
#pragma once

#include <cstdint>
#include <filesystem>
#include <iosfwd>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "trainer/data/tokenizer/text_span.h"
#include "trainer/data/tokenizer/utf8.h"

namespace lorashard {

class Tokenizer {
 public:
  // Reads DIR/tokenizer.json, and the tokens that the other files there declare beside it
  // (trainer/data/tokenizer/token_files.h). Errors: status 2, "FILE: what is wrong": also files
  // that give a token different ids.
  static std::shared_ptr<const Tokenizer> from_directory(const std::filesystem::path& directory);

  ~Tokenizer();

  // Thread-safe. Errors: status 2 when `text` is no valid UTF-8, naming the byte (from 0).
  std::vector<int32_t> encode(std::string_view text, bool add_special_tokens = true) const;

  // The ids of encode, and for each of them where in `text` it comes from (what the library's
  // offsets are with trim_offsets off). Slower: for texts with a place that matters. Thread-safe.
  std::vector<int32_t> encode(std::string_view text, bool add_special_tokens,
                              std::vector<TextSpan>& spans) const;
  // The special tokens that encode puts before a text.
  std::vector<int32_t> leading_ids() const;

  // Ids without a token add nothing, as in the library. Thread-safe.
  std::string decode(std::span<const int32_t> ids, bool skip_special_tokens = false) const;

  int64_t vocab_size() const;  // the highest id + 1, added tokens included
  // Where the files contradict each other, and which counts; for the user.
  const std::vector<std::string>& notes() const;
  std::optional<int32_t> bos_id() const;
  std::optional<int32_t> eos_id() const;
  bool has_id(int32_t id) const;

  // This tokenizer splitting by regular expressions only, without the hand-written splitters;
  // for tests.
  static std::shared_ptr<const Tokenizer> from_directory_regex_only(
      const std::filesystem::path& directory);

 private:
  struct Parts;
  std::vector<int32_t> encode(std::string_view text, bool add_special_tokens,
                              std::vector<TextSpan>* spans) const;
  explicit Tokenizer(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

// The command tokenize. Without `decode` each line of `in` is a JSON string and becomes a JSON
// array of ids (special tokens added); with it each line is an array of ids and becomes a JSON
// string. Errors: status 2, "SOURCE_NAME:LINE: …", invalid UTF-8 with its byte in the line (from
// 1).
void tokenize_lines(const Tokenizer& tokenizer, std::istream& in, std::ostream& out, bool decode,
                    const std::string& source_name);

}  // namespace lorashard
