// Reading tokenizer.json: the large vocabulary and merges as flat lists, the rest as a JSON tree,
// and checked access to that tree.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace lorashard {

using Json = nlohmann::json;

struct TokenizerJson {
  std::string file;                                         // for messages
  Json tree;                                                // without model.vocab and model.merges
  std::vector<std::pair<std::string, int32_t>> vocabulary;  // in file order, tokens distinct
  std::vector<std::pair<std::string, std::string>> merges;  // in order of rank
  bool has_vocabulary = false;
  bool has_merges = false;
};

// Errors: status 2, "FILE: …": missing or broken file, wrong types, ids outside 0 … 2^31-1.
TokenizerJson read_tokenizer_json(const std::filesystem::path& path);

// One JSON object whose every field must be read or refused: a setting that we do not know could
// change ids.
class Fields {
 public:
  // `path` names the object inside the file, for example "pre_tokenizer.pretokenizers[0]".
  Fields(const Json& object, std::string file, std::string path);

  std::string text(const std::string& key);
  std::string text_or(const std::string& key, std::string fallback);  // missing or null
  char32_t character(const std::string& key);
  bool flag(const std::string& key);
  bool flag_or(const std::string& key, bool fallback);
  int64_t integer(const std::string& key);
  // The value, or nullptr when missing or null.
  const Json* find(const std::string& key);
  const Json& array(const std::string& key);
  void ignore(const std::string& key) { read_.insert(key); }

  // Refuses the fields that nobody read. Call it last.
  void finish() const;

  std::string type();  // the field "type", once read
  std::string path_of(const std::string& key) const;
  [[noreturn]] void fail(const std::string& key, const std::string& what) const;
  // "FILE: PATH", to begin other messages with.
  std::string where() const { return file_ + ": " + path_; }
  const std::string& file() const { return file_; }

 private:
  const Json& object_;
  std::string file_, path_;
  std::set<std::string> read_;
};

// The components of a possibly nested Sequence, in order: each object with its path.
// `list_key` is the field that holds the parts of a Sequence ("normalizers", …).
std::vector<Fields> flatten_sequence(const Json& component, const std::string& file,
                                     const std::string& path, const std::string& list_key);

// {"String": …} or {"Regex": …} as Split and Replace have it.
struct PatternField {
  bool is_regex;
  std::string text;
};
PatternField read_pattern(Fields& fields);

}  // namespace lorashard
