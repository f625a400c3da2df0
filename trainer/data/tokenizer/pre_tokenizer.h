// The pre-tokenizer of tokenizer.json: cuts normalized text into words.
// Known: Sequence, ByteLevel, Split, Metaspace, Whitespace, WhitespaceSplit, Digits, Punctuation.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "trainer/data/tokenizer/regex.h"
#include "trainer/data/tokenizer/tokenizer_json.h"
#include "trainer/data/tokenizer/word_split.h"

namespace lorashard {

// A run of text on its way through the stages.
struct Piece {
  std::string_view text;
  bool at_start = false;              // it begins where the encoded text began
  const uint32_t* origins = nullptr;  // per byte of text: its offset before normalization
};

class PreTokenizer {
 public:
  using Sink = std::function<void(const Piece& word)>;
  // Buffers of one encoding thread.
  struct Workspace {
    std::vector<std::vector<Match>> matches;  // per stage
    std::vector<std::string> text, word;
    std::vector<std::vector<uint32_t>> text_origins, word_origins;  // where the piece has some
  };

  PreTokenizer() = default;  // cuts nothing
  PreTokenizer(const Json* component, const std::string& file);

  // The last stage is ByteLevel: words may be given as raw bytes (see run).
  bool ends_in_bytes() const { return !stages_.empty() && stages_.back().kind == Kind::kByteLevel; }
  // Whether a stage asks where a piece lay in the encoded text.
  bool needs_origins() const;

  // Gives the words of `piece` in order, with origins where it has them. With raw_bytes a closing
  // ByteLevel leaves its words as they are, to be read as bytes, instead of writing each byte as a
  // character.
  void run(const Piece& piece, bool raw_bytes, Workspace& work, const Sink& sink) const;

  // Uses the general regular expressions also where there is a faster way; for tests.
  void use_regex_only();

 private:
  enum class Kind {
    kByteLevel,
    kSplit,
    kMetaspace,
    kWhitespace,
    kWhitespaceSplit,
    kDigits,
    kPunctuation
  };
  enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };
  enum class Scheme { kFirst, kNever, kAlways };
  struct Stage {
    Kind kind;
    Behavior behavior = Behavior::kIsolated;
    std::optional<WordPattern> pattern;  // a known regular expression, Isolated
    std::string regex_text;              // of a known pattern, as the file has it
    std::shared_ptr<Regex> regex;        // null for a known pattern until use_regex_only
    bool invert = false;
    bool prefix_space = false, use_regex = false;  // ByteLevel
    std::string replacement;                       // Metaspace
    Scheme scheme = Scheme::kAlways;
    bool split = false;
  };
  static Stage read_stage(Fields& fields);
  static Behavior read_behavior(Fields& fields);
  void run_stage(size_t index, const Piece& piece, bool raw, Workspace& work,
                 const Sink& sink) const;
  void run_byte_level(size_t index, const Piece& piece, bool raw, Workspace& work,
                      const Sink& sink) const;
  void run_metaspace(size_t index, const Piece& piece, bool raw, Workspace& work,
                     const Sink& sink) const;
  void find_matches(const Stage& stage, std::string_view text, std::vector<Match>& matches) const;

  std::vector<Stage> stages_;
  bool regex_only_ = false;
};

}  // namespace lorashard
