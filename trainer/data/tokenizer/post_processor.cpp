#include "trainer/data/tokenizer/post_processor.h"

#include <limits>

namespace lorashard {
namespace {

int32_t checked_id(const Json& value, const Fields& fields, const std::string& key) {
  if (!value.is_number_integer() || value < 0 || value > std::numeric_limits<int32_t>::max()) {
    fields.fail(key, "must hold ids from 0 to 2147483647");
  }
  return value.get<int32_t>();
}

// ["[SEP]", 102]
int32_t named_id(Fields& fields, const std::string& key) {
  const Json& pair = fields.array(key);
  if (pair.size() != 2 || !pair[0].is_string()) fields.fail(key, "must be a pair of token and id");
  return checked_id(pair[1], fields, key);
}

// The ids of one entry of special_tokens.
std::vector<int32_t> template_ids(const Json* tokens, const std::string& name, const Fields& fields,
                                  const std::string& key) {
  if (tokens == nullptr || !tokens->is_object() || !tokens->contains(name)) {
    fields.fail(key, "names the special token '" + name + "', which special_tokens lacks");
  }
  const Json& entry = (*tokens)[name];
  if (!entry.is_object() || !entry.contains("ids") || !entry["ids"].is_array()) {
    fields.fail("special_tokens." + name, "must have a list of ids");
  }
  std::vector<int32_t> ids;
  for (const Json& id : entry["ids"]) {
    ids.push_back(checked_id(id, fields, "special_tokens." + name + ".ids"));
  }
  return ids;
}

}  // namespace

PostProcessor::PostProcessor(const Json* component, const std::string& file) {
  if (component == nullptr || component->is_null()) return;
  bool adds_tokens = false;
  for (Fields& fields : flatten_sequence(*component, file, "post_processor", "processors")) {
    const std::string type = fields.type();
    if (type == "ByteLevel") {
      for (const char* key : {"add_prefix_space", "trim_offsets", "use_regex"}) fields.ignore(key);
      fields.finish();
      continue;
    }
    if (adds_tokens) {
      fields.fail("type",
                  "'" + type + "' behind another processor that adds tokens is not supported");
    }
    adds_tokens = true;
    parts_.clear();
    if (type == "TemplateProcessing") {
      const Json* tokens = fields.find("special_tokens");
      fields.ignore("pair");  // two texts are never encoded together
      const Json& single = fields.array("single");
      for (size_t i = 0; i < single.size(); ++i) {
        const std::string key = "single[" + std::to_string(i) + "]";
        const Json& piece = single[i];
        const bool one = piece.is_object() && piece.size() == 1 && piece.begin()->is_object() &&
                         piece.begin()->contains("id") && (*piece.begin())["id"].is_string();
        if (!one) fields.fail(key, "must be one Sequence or SpecialToken with its id");
        const std::string id = (*piece.begin())["id"].get<std::string>();
        if (piece.begin().key() == "SpecialToken") {
          parts_.push_back({false, template_ids(tokens, id, fields, key)});
        } else if (piece.begin().key() == "Sequence" && id == "A") {
          parts_.push_back({true, {}});
        } else {
          fields.fail(key, "must be a SpecialToken or the Sequence A");
        }
      }
    } else if (type == "BertProcessing" || type == "RobertaProcessing") {
      parts_.push_back({false, {named_id(fields, "cls")}});
      parts_.push_back({true, {}});
      parts_.push_back({false, {named_id(fields, "sep")}});
      if (type == "RobertaProcessing") {
        fields.ignore("trim_offsets");
        fields.ignore("add_prefix_space");
      }
    } else {
      fields.fail("type",
                  "'" + type +
                      "' is not supported; known post-processors are Sequence, "
                      "ByteLevel, TemplateProcessing, BertProcessing and RobertaProcessing");
    }
    fields.finish();
  }
}

std::vector<int32_t> PostProcessor::apply(std::vector<int32_t> ids, bool add_special_tokens) const {
  if (changes_nothing()) return ids;
  std::vector<int32_t> result;
  result.reserve(ids.size() + parts_.size());
  for (const Part& part : parts_) {
    if (part.is_text) {
      result.insert(result.end(), ids.begin(), ids.end());
    } else if (add_special_tokens) {
      result.insert(result.end(), part.ids.begin(), part.ids.end());
    }
  }
  return result;
}

std::vector<int32_t> PostProcessor::leading_ids() const {
  std::vector<int32_t> ids;
  for (const Part& part : parts_) {
    if (part.is_text) return ids;
    ids.insert(ids.end(), part.ids.begin(), part.ids.end());
  }
  return {};
}

std::vector<TextSpan> PostProcessor::apply(std::vector<TextSpan> spans,
                                           bool add_special_tokens) const {
  if (changes_nothing()) return spans;
  std::vector<TextSpan> result;
  for (const Part& part : parts_) {
    if (part.is_text) {
      result.insert(result.end(), spans.begin(), spans.end());
    } else if (add_special_tokens) {
      result.resize(result.size() + part.ids.size());
    }
  }
  return result;
}

std::vector<int32_t> PostProcessor::special_ids() const {
  std::vector<int32_t> ids;
  for (const Part& part : parts_) ids.insert(ids.end(), part.ids.begin(), part.ids.end());
  return ids;
}

}  // namespace lorashard
