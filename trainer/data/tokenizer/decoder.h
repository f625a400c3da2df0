// The decoder of tokenizer.json: joins tokens to text.
// Known: Sequence, ByteLevel, ByteFallback, Fuse, Metaspace, Replace, Strip.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "trainer/data/tokenizer/regex.h"
#include "trainer/data/tokenizer/tokenizer_json.h"

namespace lorashard {

class Decoder {
 public:
  Decoder() = default;  // joins tokens with spaces
  Decoder(const Json* component, const std::string& file);
  std::string decode(std::vector<std::string> tokens) const;

 private:
  enum class Kind { kByteLevel, kByteFallback, kFuse, kMetaspace, kReplace, kStrip };
  struct Step {
    Kind kind;
    std::string content;           // Replace: what is put in; Metaspace, Strip: the character
    std::shared_ptr<Regex> regex;  // Replace
    bool drops_first = false;      // Metaspace: the first token loses its leading spaces
    int64_t start = 0, stop = 0;   // Strip: most characters to take away at either end
  };
  static Step read_step(Fields& fields);
  static void run(const Step& step, std::vector<std::string>& tokens);
  bool present_ = false;
  std::vector<Step> steps_;
};

}  // namespace lorashard
