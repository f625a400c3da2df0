#include "trainer/data/tokenizer/token_files.h"

#include <algorithm>
#include <charconv>
#include <map>
#include <set>

#include "checkpoint/file_io.h"
#include "checkpoint/json_strict.h"
#include "configs/error.h"
#include "trainer/data/tokenizer/tokenizer_json.h"

namespace lorashard {
namespace {

namespace fs = std::filesystem;

// As transformers orders them.
const std::vector<std::string> kNames = {"bos_token", "eos_token", "unk_token", "sep_token",
                                         "pad_token", "cls_token", "mask_token"};

// An object; null where there is no file.
Json read_object(const fs::path& path) {
  std::error_code ignored;
  if (!fs::exists(path, ignored)) return Json();
  Json value = parse_json_strict(read_text(path), path.string());
  if (!value.is_object()) fail_input(path.string(), "must be a JSON object");
  return value;
}

// "<s>" or {"content": "<s>", "lstrip": …}. `special`: what a token is that does not say.
AddedToken read_token(const Json& value, const std::string& where, bool special) {
  AddedToken token;
  token.special = special;
  token.normalized = !special;
  if (value.is_string()) {
    token.content = value.get<std::string>();
    return token;
  }
  if (!value.is_object() || !value.contains("content") || !value["content"].is_string()) {
    fail_input(where, "must be a token: a string, or an object with its content");
  }
  token.content = value["content"].get<std::string>();
  const auto flag = [&](const char* key, bool otherwise) {
    if (!value.contains(key) || value[key].is_null()) return otherwise;
    if (!value[key].is_boolean()) fail_input(where, std::string(key) + " must be true or false");
    return value[key].get<bool>();
  };
  token.special = flag("special", special);
  token.single_word = flag("single_word", false);
  token.lstrip = flag("lstrip", false);
  token.rstrip = flag("rstrip", false);
  token.normalized = flag("normalized", !token.special);
  return token;
}

// One value of a config and the place it has come from.
struct Named {
  Json value;
  std::string where;
};

bool names_a_token(const std::string& key, const Json& value) {
  return key.ends_with("_token") && (value.is_string() || value.is_object());
}

void take_names(const Json& from, const std::string& file, std::map<std::string, Named>& names,
                std::vector<Named>& extra) {
  for (const auto& [key, value] : from.items()) {
    if (names_a_token(key, value)) names[key] = {value, file + ": " + key};
    if (std::find(kNames.begin(), kNames.end(), key) != kNames.end() && value.is_null()) {
      names.erase(key);
    }
  }
  for (const char* key : {"extra_special_tokens", "additional_special_tokens"}) {
    if (!from.contains(key) || from[key].is_null() || from[key].empty()) continue;
    const Json& list = from[key];
    const std::string where = file + ": " + key;
    if (!list.is_array() && !list.is_object()) fail_input(where, "must be a list of tokens");
    if (list.is_object()) {
      for (const auto& [name, value] : list.items()) names[name] = {value, where + "." + name};
    } else {
      for (const Json& value : list) extra.push_back({value, where});
    }
    break;  // the older name counts where the newer one is not given
  }
}

int64_t read_id(const std::string& text, const std::string& where) {
  int64_t id = -1;
  const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), id);
  if (failure != std::errc() || end != text.data() + text.size() || id < 0 || id > INT32_MAX) {
    fail_input(where, "has the id '" + text + "', expected 0 to 2147483647");
  }
  return id;
}

}  // namespace

TokenFiles read_token_files(const fs::path& directory) {
  const std::string config_file = (directory / "tokenizer_config.json").string();
  const std::string map_file = (directory / "special_tokens_map.json").string();
  const std::string added_file = (directory / "added_tokens.json").string();
  const Json config = read_object(config_file), map = read_object(map_file),
             added = read_object(added_file);
  TokenFiles files;
  std::map<std::string, Named> names;
  std::vector<Named> extra;
  if (config.is_object()) take_names(config, config_file, names, extra);
  std::map<int64_t, DeclaredToken> declared;
  const bool listed = config.is_object() && config.contains("added_tokens_decoder");
  if (listed) {
    const std::string where = config_file + ": added_tokens_decoder";
    const Json& list = config["added_tokens_decoder"];
    if (!list.is_object()) fail_input(where, "must map ids to tokens");
    for (const auto& [key, value] : list.items()) {
      const int64_t id = read_id(key, where);
      if (!value.is_object()) fail_input(where + "." + key, "must be an object with its content");
      declared[id] = {read_token(value, where + "." + key, false), id, true, where + "." + key};
    }
    // What transformers leaves unread is said where it would have changed something.
    for (const auto& [key, value] : map.items()) {
      if (!names_a_token(key, value)) continue;
      const std::string theirs = read_token(value, map_file + ": " + key, true).content;
      const auto ours = names.find(key);
      if (ours == names.end() ||
          read_token(ours->second.value, ours->second.where, true).content != theirs) {
        files.notes.push_back(map_file + ": " + key + " '" + theirs +
                              "' is not read, as in transformers, since tokenizer_config.json has "
                              "added_tokens_decoder and its own names");
      }
    }
    for (const auto& [content, id] : added.items()) {
      const auto same = [&, &text = content](const auto& one) {
        return one.second.token.content == text;
      };
      if (std::none_of(declared.begin(), declared.end(), same)) {
        files.notes.push_back(added_file + ": '" + content +
                              "' is not read, as in transformers, since tokenizer_config.json has "
                              "added_tokens_decoder without it");
      }
    }
  } else {
    if (map.is_object()) take_names(map, map_file, names, extra);
    std::set<std::string> special;
    for (const std::string& key : kNames) {
      if (const auto found = names.find(key); found != names.end()) {
        special.insert(read_token(found->second.value, found->second.where, true).content);
      }
    }
    for (const Named& one : extra) special.insert(read_token(one.value, one.where, true).content);
    for (const auto& [content, value] : added.items()) {
      const int64_t id = read_id(value.dump(), added_file + ": '" + content + "'");
      const auto [other, fresh] = declared.emplace(
          id, DeclaredToken{read_token(Json(content), added_file, special.contains(content)), id,
                            false, added_file + ": '" + content + "'"});
      if (!fresh) {
        fail_input(added_file, "gives id " + std::to_string(id) + " to both '" +
                                   other->second.token.content + "' and '" + content + "'");
      }
    }
  }
  for (auto& [id, token] : declared) files.tokens.push_back(token);
  std::vector<Json> seen;  // of two names for one token that differ in flags the later one counts
  const auto name = [&](const Named& one) {
    AddedToken token = read_token(one.value, one.where, true);
    token.special = true;
    const std::string content = token.content;
    if (std::find(seen.begin(), seen.end(), one.value) == seen.end()) {
      seen.push_back(one.value);
      files.tokens.push_back({std::move(token), std::nullopt, false, one.where});
    }
    return content;
  };
  for (const std::string& key : kNames) {
    const auto found = names.find(key);
    if (found == names.end()) continue;
    const std::string content = name(found->second);
    for (DeclaredToken& token : files.tokens) token.token.special |= token.token.content == content;
    if (key == "bos_token") files.bos = content;
    if (key == "eos_token") files.eos = content;
    names.erase(found);
  }
  for (const auto& [key, one] : names) name(one);
  for (const Named& one : extra) name(one);
  return files;
}

}  // namespace lorashard
