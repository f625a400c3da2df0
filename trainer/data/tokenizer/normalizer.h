// The normalizer of tokenizer.json: what happens to text before it is split.
// Known: Sequence, NFC, NFD, NFKC, NFKD, Lowercase, Prepend, Replace, Strip, StripAccents, Nmt,
// ByteLevel. Others (Precompiled, BertNormalizer) are refused by name.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "trainer/data/tokenizer/regex.h"
#include "trainer/data/tokenizer/tokenizer_json.h"
#include "trainer/data/tokenizer/unicode.h"

namespace lorashard {

class Normalizer {
 public:
  Normalizer() = default;  // changes nothing
  // `component` may be null.
  Normalizer(const Json* component, const std::string& file);

  bool empty() const { return steps_.empty(); }

  // The normalized text: `text` itself where nothing changes, else a view of `buffer`.
  // `origins`, unless null, receives for each byte of the result where in `text` it came from
  // as the library aligns it; of a character composed of several the last byte has the place of the
  // last of them.
  std::string_view apply(std::string_view text, std::string& buffer,
                         std::vector<uint32_t>* origins) const;

 private:
  enum class Kind {
    kForm,
    kLowercase,
    kPrepend,
    kReplace,
    kStrip,
    kStripAccents,
    kNmt,
    kByteLevel
  };
  struct Step {
    Kind kind;
    NormalForm form{};
    std::string literal;               // Replace: the text sought, when it is no regular expression
    std::shared_ptr<Regex> regex;      // Replace
    std::string content;               // Replace, Prepend
    bool left = false, right = false;  // Strip
  };
  static bool run(const Step& step, std::string_view text, std::string& out,
                  const std::vector<uint32_t>* before, std::vector<uint32_t>* after);
  std::vector<Step> steps_;
};

// The printable character that byte-level tokenizers write for each byte, as UTF-8.
const std::string& byte_level_character(unsigned char byte);
// Appends the characters of all bytes of `bytes`.
void append_byte_level(std::string& text, std::string_view bytes);
// The byte that the character stands for, or -1.
int byte_of_character(char32_t c);

}  // namespace lorashard
