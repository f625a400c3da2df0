// The post-processor of tokenizer.json: special tokens around the ids of one text.
// Known: Sequence, ByteLevel (which moves offsets only), TemplateProcessing, BertProcessing,
// RobertaProcessing.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/data/tokenizer/text_span.h"
#include "trainer/data/tokenizer/tokenizer_json.h"

namespace lorashard {

class PostProcessor {
 public:
  PostProcessor() = default;  // adds nothing
  PostProcessor(const Json* component, const std::string& file);

  std::vector<int32_t> apply(std::vector<int32_t> ids, bool add_special_tokens) const;
  // The spans of what apply gives, from those of the text's ids.
  std::vector<TextSpan> apply(std::vector<TextSpan> spans, bool add_special_tokens) const;

  // The ids that apply puts before a text; none where it leaves the text out.
  std::vector<int32_t> leading_ids() const;
  // Every id that apply may add.
  std::vector<int32_t> special_ids() const;

 private:
  struct Part {
    bool is_text = false;
    std::vector<int32_t> ids;  // special tokens, when it is not the text
  };
  bool changes_nothing() const { return parts_.size() == 1 && parts_[0].is_text; }
  std::vector<Part> parts_{Part{true, {}}};
};

}  // namespace lorashard
