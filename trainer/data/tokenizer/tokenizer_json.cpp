#include "trainer/data/tokenizer/tokenizer_json.h"

#include <cmath>
#include <fstream>
#include <limits>
#include <unordered_set>

#include "checkpoint/lfs_pointer.h"
#include "configs/error.h"
#include "trainer/data/tokenizer/utf8.h"

namespace lorashard {
namespace {

// Builds the tree, except that model.vocab and model.merges go to their lists.
class Builder : public nlohmann::json_sax<Json> {
 public:
  explicit Builder(TokenizerJson& result) : result_(result) {}

  bool null() override { return value(nullptr); }
  bool boolean(bool v) override { return value(v); }
  bool number_integer(number_integer_t v) override { return value(v); }
  bool number_unsigned(number_unsigned_t v) override {
    if (mode_ != Mode::kVocabulary) return value(v);
    if (v > static_cast<uint64_t>(std::numeric_limits<int32_t>::max())) return bad_id();
    result_.vocabulary.emplace_back(std::move(key_), static_cast<int32_t>(v));
    return true;
  }
  bool number_float(number_float_t v, const string_t&) override { return value(v); }
  bool binary(binary_t&) override { return false; }
  bool string(string_t& v) override {
    if (mode_ != Mode::kMerges) return value(std::move(v));
    if (in_pair_) {
      pair_.push_back(std::move(v));
      return true;
    }
    const size_t space = v.find(' ');
    if (space == std::string::npos || v.find(' ', space + 1) != std::string::npos) {
      fail_merge("must be two tokens with one space between them");
    }
    result_.merges.emplace_back(v.substr(0, space), v.substr(space + 1));
    return true;
  }
  bool start_object(size_t) override {
    if (mode_ != Mode::kTree) return value(nullptr);
    if (in_model() && key_ == "vocab") {
      result_.has_vocabulary = true;
      mode_ = Mode::kVocabulary;
      return true;
    }
    open(Json::object());
    return true;
  }
  bool end_object() override {
    if (mode_ == Mode::kVocabulary) {
      mode_ = Mode::kTree;
    } else {
      stack_.pop_back();
    }
    return true;
  }
  bool start_array(size_t) override {
    if (mode_ == Mode::kMerges && !in_pair_) {
      in_pair_ = true;
      pair_.clear();
      return true;
    }
    if (mode_ != Mode::kTree) return value(nullptr);
    if (in_model() && key_ == "merges") {
      result_.has_merges = true;
      mode_ = Mode::kMerges;
      return true;
    }
    open(Json::array());
    return true;
  }
  bool end_array() override {
    if (mode_ == Mode::kMerges && in_pair_) {
      if (pair_.size() != 2) fail_merge("must be a pair of tokens");
      result_.merges.emplace_back(std::move(pair_[0]), std::move(pair_[1]));
      in_pair_ = false;
    } else if (mode_ == Mode::kMerges) {
      mode_ = Mode::kTree;
    } else {
      stack_.pop_back();
    }
    return true;
  }
  bool key(string_t& v) override {
    key_ = std::move(v);
    return true;
  }
  bool parse_error(size_t, const std::string&, const Json::exception& error) override {
    std::string message = error.what();
    const size_t bracket = message.find("] ");
    if (bracket != std::string::npos) message.erase(0, bracket + 2);
    fail_input(result_.file, "is no valid JSON: " + message);
  }

 private:
  enum class Mode { kTree, kVocabulary, kMerges };

  bool in_model() const { return stack_.size() == 2 && model_ == stack_.back(); }

  bool value(Json v) {
    if (mode_ == Mode::kVocabulary) return bad_id();
    if (mode_ == Mode::kMerges) fail_merge("must be a text or a pair of texts");
    add(std::move(v));
    return true;
  }
  bool bad_id() {
    fail_input(result_.file,
               "model.vocab: the id of '" + key_ + "' must be a whole number from 0 to 2147483647");
  }
  [[noreturn]] void fail_merge(const std::string& what) {
    fail_input(result_.file,
               "model.merges[" + std::to_string(result_.merges.size()) + "]: " + what);
  }
  Json* add(Json v) {
    if (stack_.empty()) {
      result_.tree = std::move(v);
      return &result_.tree;
    }
    Json& parent = *stack_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(v));
      return &parent.back();
    }
    return &(parent[key_] = std::move(v));
  }
  void open(Json container) {
    const bool is_model = stack_.size() == 1 && key_ == "model" && stack_.back()->is_object();
    stack_.push_back(add(std::move(container)));
    if (is_model) model_ = stack_.back();
  }

  TokenizerJson& result_;
  Mode mode_ = Mode::kTree;
  std::string key_;
  std::vector<Json*> stack_;  // an element's children end before its siblings begin: stays valid
  const Json* model_ = nullptr;
  bool in_pair_ = false;
  std::vector<std::string> pair_;
};

const char* type_name(const Json& value) { return value.is_null() ? "null" : value.type_name(); }

}  // namespace

TokenizerJson read_tokenizer_json(const std::filesystem::path& path) {
  TokenizerJson result;
  result.file = path.string();
  std::ifstream stream(path, std::ios::binary);
  if (!stream) {
    fail_input(result.file,
               "cannot be read; a Hugging Face directory with tokenizer.json is needed");
  }
  const std::string text((std::istreambuf_iterator<char>(stream)),
                         std::istreambuf_iterator<char>());
  refuse_lfs_pointer(text, result.file);
  Builder builder(result);
  Json::sax_parse(text, &builder);
  if (!result.tree.is_object()) fail_input(result.file, "must be a JSON object");
  std::unordered_set<std::string_view> tokens;
  tokens.reserve(result.vocabulary.size());
  for (const auto& [token, id] : result.vocabulary) {
    if (!tokens.insert(token).second) {
      fail_input(result.file, "model.vocab: the token '" + token + "' stands twice");
    }
  }
  return result;
}

Fields::Fields(const Json& object, std::string file, std::string path)
    : object_(object), file_(std::move(file)), path_(std::move(path)) {
  if (!object.is_object()) {
    fail_input(file_, path_ + " must be an object, not " + type_name(object));
  }
}

std::string Fields::path_of(const std::string& key) const {
  return path_.empty() ? key : path_ + "." + key;
}

void Fields::fail(const std::string& key, const std::string& what) const {
  fail_input(file_, path_of(key) + " " + what);
}

const Json* Fields::find(const std::string& key) {
  read_.insert(key);
  const auto found = object_.find(key);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

std::string Fields::text(const std::string& key) {
  const Json* value = find(key);
  if (value == nullptr) fail(key, "is missing; it must be a text");
  if (!value->is_string()) fail(key, std::string("must be a text, not ") + type_name(*value));
  return value->get<std::string>();
}

std::string Fields::text_or(const std::string& key, std::string fallback) {
  return find(key) == nullptr ? std::move(fallback) : text(key);
}

char32_t Fields::character(const std::string& key) {
  const std::string value = text(key);
  if (value.empty() || utf8_length(value[0]) != static_cast<int>(value.size())) {
    fail(key, "must be one character");
  }
  const char* p = value.data();
  return next_code_point(p);
}

bool Fields::flag(const std::string& key) {
  const Json* value = find(key);
  if (value == nullptr) fail(key, "is missing; it must be true or false");
  if (!value->is_boolean())
    fail(key, std::string("must be true or false, not ") + type_name(*value));
  return value->get<bool>();
}

bool Fields::flag_or(const std::string& key, bool fallback) {
  return find(key) == nullptr ? fallback : flag(key);
}

int64_t Fields::integer(const std::string& key) {
  const Json* value = find(key);
  if (value == nullptr) fail(key, "is missing; it must be a whole number");
  if (!value->is_number_integer() ||
      (value->is_number_unsigned() &&
       value->get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))) {
    fail(key, "must be a whole number");
  }
  return value->get<int64_t>();
}

const Json& Fields::array(const std::string& key) {
  const Json* value = find(key);
  if (value == nullptr || !value->is_array()) fail(key, "must be a list");
  return *value;
}

std::string Fields::type() { return text("type"); }

void Fields::finish() const {
  for (const auto& [key, value] : object_.items()) {
    if (!read_.contains(key)) {
      fail(key, "is a setting that is not supported; ids could depend on it");
    }
  }
}

std::vector<Fields> flatten_sequence(const Json& component, const std::string& file,
                                     const std::string& path, const std::string& list_key) {
  Fields fields(component, file, path);
  if (fields.type() != "Sequence") {
    std::vector<Fields> one;
    one.emplace_back(component, file, path);
    return one;
  }
  std::vector<Fields> parts;
  const Json& list = fields.array(list_key);
  fields.finish();
  for (size_t i = 0; i < list.size(); ++i) {
    const std::string inner = path + "." + list_key + "[" + std::to_string(i) + "]";
    for (Fields& part : flatten_sequence(list[i], file, inner, list_key)) {
      parts.push_back(std::move(part));
    }
  }
  return parts;
}

PatternField read_pattern(Fields& fields) {
  const Json* value = fields.find("pattern");
  if (value == nullptr || !value->is_object() || value->size() != 1 ||
      !value->begin()->is_string() ||
      (value->begin().key() != "String" && value->begin().key() != "Regex")) {
    fields.fail("pattern", "must be {\"String\": text} or {\"Regex\": text}");
  }
  PatternField pattern{value->begin().key() == "Regex", value->begin()->get<std::string>()};
  if (pattern.text.empty()) fields.fail("pattern", "must not be empty");
  return pattern;
}

}  // namespace lorashard
