#include "trainer/tokenizer/tokenizer.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <map>
#include <mutex>
#include <set>
#include <unordered_map>

#include "configs/error.h"
#include "trainer/tokenizer/added_tokens.h"
#include "trainer/tokenizer/bpe.h"
#include "trainer/tokenizer/decoder.h"
#include "trainer/tokenizer/normalizer.h"
#include "trainer/tokenizer/post_processor.h"
#include "trainer/tokenizer/pre_tokenizer.h"
#include "trainer/tokenizer/tokenizer_json.h"

namespace lorashard {
namespace {

struct Workspace {
  BpeWorkspace bpe;
  PreTokenizer::Workspace words;
  std::string normalized;
  std::vector<uint32_t> origins;
};

// Workspaces wait here between calls of encode, so that each thread in it has one of its own.
class WorkspacePool {
 public:
  std::unique_ptr<Workspace> take() {
    const std::lock_guard lock(mutex_);
    if (waiting_.empty()) return std::make_unique<Workspace>();
    std::unique_ptr<Workspace> one = std::move(waiting_.back());
    waiting_.pop_back();
    return one;
  }
  void put(std::unique_ptr<Workspace> one) {
    const std::lock_guard lock(mutex_);
    waiting_.push_back(std::move(one));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Workspace>> waiting_;
};

Json read_json_if_present(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) return Json();
  try {
    Json value = Json::parse(stream);
    if (!value.is_object()) fail_input(path.string(), "must be a JSON object");
    return value;
  } catch (const Json::exception& error) {
    const std::string message = error.what();
    const size_t bracket = message.find("] ");
    fail_input(path.string(), "is no valid JSON: " +
                                  message.substr(bracket == std::string::npos ? 0 : bracket + 2));
  }
}

// "<s>" or {"content": "<s>", …}.
std::optional<std::string> token_name(const Json& config, const std::string& key) {
  if (!config.is_object() || !config.contains(key)) return std::nullopt;
  const Json& value = config[key];
  if (value.is_string()) return value.get<std::string>();
  if (value.is_object() && value.contains("content") && value["content"].is_string()) {
    return value["content"].get<std::string>();
  }
  return std::nullopt;
}

}  // namespace

struct Tokenizer::Parts {
  std::string file;
  std::unique_ptr<Bpe> bpe;
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  PostProcessor post_processor;
  Decoder decoder;

  std::map<int32_t, AddedToken> added;  // by id; the matchers point into it
  std::unordered_map<std::string, int32_t> added_ids;
  std::set<std::string> special;        // contents of special tokens
  AddedTokenMatcher raw_tokens;         // sought before normalization
  AddedTokenMatcher normalized_tokens;  // sought in normalized text

  std::unordered_map<int32_t, std::string> tokens;  // as decoders see them
  std::optional<int32_t> bos, eos;
  int64_t vocab_size = 0;
  bool raw_bytes = false;
  bool needs_origins = false;
  mutable WorkspacePool pool;

  explicit Parts(const std::filesystem::path& directory);
  void read_added_tokens(const Json& list);
  void read_names(const std::filesystem::path& directory);
  int32_t find(const std::string& token) const;
  // `spans`, unless null, receives those of the ids in piece.text, shifted by `offset`.
  void encode_piece(const Piece& piece, Workspace& work, std::vector<int32_t>& ids,
                    std::vector<TextSpan>* spans, size_t offset) const;
  void encode_word(const Piece& word, Workspace& work, std::vector<int32_t>& ids) const;
};

Tokenizer::Parts::Parts(const std::filesystem::path& directory) {
  TokenizerJson json = read_tokenizer_json(directory / "tokenizer.json");
  file = json.file;
  Fields top(json.tree, file, "");
  if (top.text_or("version", "1.0") != "1.0") top.fail("version", "must be \"1.0\"");
  top.ignore("truncation");
  top.ignore("padding");
  const Json* model = top.find("model");
  if (model == nullptr) top.fail("model", "is missing");
  Fields model_fields(*model, file, "model");
  const std::string type = model_fields.text_or("type", "BPE");
  if (type != "BPE") {
    model_fields.fail("type", "'" + type + "' is not supported; only BPE is");
  }
  bpe = std::make_unique<Bpe>(json, model_fields);
  normalizer = Normalizer(top.find("normalizer"), file);
  pre_tokenizer = PreTokenizer(top.find("pre_tokenizer"), file);
  post_processor = PostProcessor(top.find("post_processor"), file);
  decoder = Decoder(top.find("decoder"), file);
  raw_bytes = pre_tokenizer.ends_in_bytes() && bpe->covers_bytes();
  needs_origins = pre_tokenizer.needs_origins() && !normalizer.empty();
  for (const auto& [token, id] : bpe->vocabulary()) tokens.emplace(id, token);
  if (const Json* list = top.find("added_tokens")) read_added_tokens(*list);
  top.finish();
  for (const auto& [id, token] : tokens)
    vocab_size = std::max<int64_t>(vocab_size, id + int64_t{1});
  for (const int32_t id : post_processor.special_ids()) {
    if (id >= vocab_size) {
      fail_input(file, "post_processor adds id " + std::to_string(id) + ", but the highest id is " +
                           std::to_string(vocab_size - 1));
    }
  }
  read_names(directory);
}

int32_t Tokenizer::Parts::find(const std::string& token) const {
  const auto found = added_ids.find(token);
  return found != added_ids.end() ? found->second : bpe->token_to_id(token);
}

// Ids are given out as the library does: a known content keeps its id, others follow the
// vocabulary. The file's own ids must agree, else nobody could say which id is meant.
void Tokenizer::Parts::read_added_tokens(const Json& list) {
  if (!list.is_array()) fail_input(file, "added_tokens must be a list");
  auto next = static_cast<int64_t>(bpe->vocabulary().size());
  for (size_t i = 0; i < list.size(); ++i) {
    Fields fields(list[i], file, "added_tokens[" + std::to_string(i) + "]");
    AddedToken token;
    const int64_t declared = fields.integer("id");
    token.content = fields.text("content");
    token.single_word = fields.flag("single_word");
    token.lstrip = fields.flag("lstrip");
    token.rstrip = fields.flag("rstrip");
    token.normalized = fields.flag("normalized");
    token.special = fields.flag("special");
    fields.finish();
    if (declared < 0 || declared > std::numeric_limits<int32_t>::max()) {
      fields.fail("id", "must be from 0 to 2147483647");
    }
    if (token.content.empty()) continue;  // the library skips it
    int64_t id = find(token.content);
    if (id < 0) id = next++;
    if (id != declared) {
      fields.fail("id", "is " + std::to_string(declared) + ", but '" + token.content +
                            "' gets id " + std::to_string(id) +
                            ": tokens outside the vocabulary follow it without gaps");
    }
    token.id = static_cast<int32_t>(id);
    added_ids[token.content] = token.id;
    if (token.special) special.insert(token.content);
    added[token.id] = token;
  }
  std::map<std::string, int32_t> patterns;
  for (const auto& [id, token] : added) {
    std::string buffer, pattern = token.content;
    if (token.normalized) pattern = std::string(normalizer.apply(token.content, buffer, nullptr));
    // What the decoder sees of a normalized token is its normalized form.
    tokens[id] = pattern;
    const auto [other, fresh] = patterns.emplace((token.normalized ? "n" : "r") + pattern, id);
    if (pattern.empty() || !fresh) {
      fail_input(file, "added_tokens: '" + token.content +
                           (pattern.empty() ? "' is empty once normalized"
                                            : "' and '" + added[other->second].content +
                                                  "' are the same once normalized"));
    }
    (token.normalized ? normalized_tokens : raw_tokens).add(pattern, token);
  }
}

void Tokenizer::Parts::read_names(const std::filesystem::path& directory) {
  const std::filesystem::path paths[] = {directory / "tokenizer_config.json",
                                         directory / "special_tokens_map.json"};
  const Json configs[] = {read_json_if_present(paths[0]), read_json_if_present(paths[1])};
  const auto named = [&](const char* key) -> std::optional<int32_t> {
    for (int i = 0; i < 2; ++i) {
      const std::optional<std::string> name = token_name(configs[i], key);
      if (!name) continue;
      const int32_t id = find(*name);
      if (id < 0) {
        fail_input(paths[i].string(),
                   std::string(key) + " is '" + *name + "', which tokenizer.json has no token for");
      }
      return id;
    }
    return std::nullopt;
  };
  bos = named("bos_token");
  eos = named("eos_token");
}

void Tokenizer::Parts::encode_word(const Piece& word, Workspace& work,
                                   std::vector<int32_t>& ids) const {
  if (raw_bytes) {
    bpe->encode_bytes(word.text, work.bpe, ids);
  } else {
    bpe->encode(word.text, work.bpe, ids);
  }
}

namespace {

// The whole characters of `text` that bytes `first` to `last` belong to, shifted by `offset`.
TextSpan span_of(std::string_view text, uint32_t first, uint32_t last, size_t offset) {
  while (!begins_code_point(text[first])) --first;
  while (!begins_code_point(text[last])) --last;
  const size_t end = last + static_cast<size_t>(utf8_length(text[last]));
  return {static_cast<int64_t>(offset + first), static_cast<int64_t>(offset + end)};
}

// The first and the last byte of the character of `text` that byte `at` is part of.
size_t first_of_character(std::string_view text, size_t at) {
  while (!begins_code_point(text[at])) --at;
  return at;
}
size_t last_of_character(std::string_view text, size_t at) {
  while (at + 1 < text.size() && !begins_code_point(text[at + 1])) ++at;
  return at;
}

}  // namespace

void Tokenizer::Parts::encode_piece(const Piece& piece, Workspace& work, std::vector<int32_t>& ids,
                                    std::vector<TextSpan>* spans, size_t offset) const {
  const bool with_origins = needs_origins || spans != nullptr;
  std::vector<uint32_t>* origins = with_origins ? &work.origins : nullptr;
  const std::string_view text = normalizer.apply(piece.text, work.normalized, origins);
  // The word's bytes from `first` to `last`.
  const auto add_span = [&](const Piece& word, size_t first, size_t last) {
    spans->push_back(span_of(piece.text, word.origins[first_of_character(word.text, first)],
                             word.origins[last_of_character(word.text, last)], offset));
  };
  const auto words = [&](size_t begin, size_t end) {
    Piece part{text.substr(begin, end - begin), piece.at_start, nullptr};
    if (with_origins) {
      part.origins = work.origins.data() + begin;
      part.at_start = piece.at_start && part.origins[0] == 0;
    } else {
      part.at_start = piece.at_start && begin == 0;
    }
    pre_tokenizer.run(part, raw_bytes, work.words, [&](const Piece& word) {
      if (spans == nullptr) return encode_word(word, work, ids);
      bpe->encode_with_ends(word.text, raw_bytes, work.bpe);
      ids.insert(ids.end(), work.bpe.ids.begin(), work.bpe.ids.end());
      size_t first = 0;
      for (const int32_t behind : work.bpe.ends) {
        const auto last = static_cast<size_t>(behind) - 1;
        add_span(word, std::min(first, last), last);
        first = last + 1;
      }
    });
  };
  if (normalized_tokens.empty()) {
    if (!text.empty()) words(0, text.size());
    return;
  }
  normalized_tokens.split(text, [&](size_t begin, size_t end, const AddedToken* token) {
    if (token == nullptr) return words(begin, end);
    ids.push_back(token->id);
    if (spans != nullptr) add_span({text, false, work.origins.data()}, begin, end - 1);
  });
}

Tokenizer::Tokenizer(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Tokenizer::~Tokenizer() = default;

std::shared_ptr<const Tokenizer> Tokenizer::from_directory(const std::filesystem::path& directory) {
  return std::shared_ptr<const Tokenizer>(new Tokenizer(std::make_unique<Parts>(directory)));
}

std::shared_ptr<const Tokenizer> Tokenizer::from_directory_regex_only(
    const std::filesystem::path& directory) {
  auto parts = std::make_unique<Parts>(directory);
  parts->pre_tokenizer.use_regex_only();
  return std::shared_ptr<const Tokenizer>(new Tokenizer(std::move(parts)));
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool add_special_tokens) const {
  return encode(text, add_special_tokens, nullptr);
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool add_special_tokens,
                                       std::vector<TextSpan>& spans) const {
  return encode(text, add_special_tokens, &spans);
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool add_special_tokens,
                                       std::vector<TextSpan>* spans) const {
  const size_t invalid = find_invalid_utf8(text);
  if (invalid != kValidUtf8) {
    fail_input("text", "is no valid UTF-8 at byte " + std::to_string(invalid));
  }
  if (text.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
    fail_input("text",
               "has " + std::to_string(text.size()) + " bytes; at most 2 GiB can be encoded");
  }
  std::vector<int32_t> ids;
  if (spans != nullptr) spans->clear();
  ids.reserve(text.size() / 3 + 4);
  std::unique_ptr<Workspace> work = parts_->pool.take();
  parts_->raw_tokens.split(text, [&](size_t begin, size_t end, const AddedToken* token) {
    if (token != nullptr) {
      ids.push_back(token->id);
      if (spans != nullptr) spans->push_back({int64_t(begin), int64_t(end)});
    } else {
      parts_->encode_piece({text.substr(begin, end - begin), begin == 0, nullptr}, *work, ids,
                           spans, begin);
    }
  });
  parts_->pool.put(std::move(work));
  if (spans != nullptr) {
    *spans = parts_->post_processor.apply(std::move(*spans), add_special_tokens);
  }
  return parts_->post_processor.apply(std::move(ids), add_special_tokens);
}

std::vector<int32_t> Tokenizer::leading_ids() const { return parts_->post_processor.leading_ids(); }

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  std::vector<std::string> tokens;
  tokens.reserve(ids.size());
  for (const int32_t id : ids) {
    const auto found = parts_->tokens.find(id);
    if (found == parts_->tokens.end()) continue;
    if (skip_special_tokens && parts_->special.contains(found->second)) continue;
    tokens.push_back(found->second);
  }
  return parts_->decoder.decode(std::move(tokens));
}

int64_t Tokenizer::vocab_size() const { return parts_->vocab_size; }
std::optional<int32_t> Tokenizer::bos_id() const { return parts_->bos; }
std::optional<int32_t> Tokenizer::eos_id() const { return parts_->eos; }

std::optional<int32_t> Tokenizer::token_to_id(std::string_view token) const {
  const int32_t id = parts_->find(std::string(token));
  return id < 0 ? std::nullopt : std::optional<int32_t>(id);
}

bool Tokenizer::has_id(int32_t id) const { return parts_->tokens.contains(id); }

std::string Tokenizer::id_to_token(int32_t id) const {
  const auto found = parts_->tokens.find(id);
  return found == parts_->tokens.end() ? "" : found->second;
}

}  // namespace lorashard
