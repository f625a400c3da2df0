#include "trainer/data/tokenizer/tokenizer.h"

#include <algorithm>
#include <limits>
#include <map>
#include <mutex>
#include <set>
#include <unordered_map>

#include "configs/error.h"
#include "trainer/data/tokenizer/added_tokens.h"
#include "trainer/data/tokenizer/bpe.h"
#include "trainer/data/tokenizer/decoder.h"
#include "trainer/data/tokenizer/normalizer.h"
#include "trainer/data/tokenizer/post_processor.h"
#include "trainer/data/tokenizer/pre_tokenizer.h"
#include "trainer/data/tokenizer/token_files.h"
#include "trainer/data/tokenizer/tokenizer_json.h"

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
  std::vector<std::string> notes;
  int64_t vocab_size = 0;
  bool raw_bytes = false;
  bool needs_origins = false;
  mutable WorkspacePool pool;

  explicit Parts(const std::filesystem::path& directory);
  void read_added_tokens(const Json& list);
  void read_other_files(const std::filesystem::path& directory);
  void match_added_tokens();
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
  read_other_files(directory);
  match_added_tokens();
  for (const auto& [id, token] : tokens)
    vocab_size = std::max<int64_t>(vocab_size, id + int64_t{1});
  for (const int32_t id : post_processor.special_ids()) {
    if (id >= vocab_size) {
      fail_input(file, "post_processor adds id " + std::to_string(id) + ", but the highest id is " +
                           std::to_string(vocab_size - 1));
    }
  }
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
    added[token.id] = token;
  }
}

// Tokens of the other files of the folder, as transformers adds them: a content that is known keeps
// its id and gets the flags declared for it, others get the ids that follow.
void Tokenizer::Parts::read_other_files(const std::filesystem::path& directory) {
  TokenFiles files = read_token_files(directory);
  notes = std::move(files.notes);
  std::set<std::string> listed;  // not only named
  for (const auto& [id, token] : added) listed.insert(token.content);
  for (DeclaredToken& declared : files.tokens) {
    AddedToken& token = declared.token;
    if (token.content.empty()) continue;
    int64_t id = find(token.content);
    const bool fresh = id < 0;
    if (fresh) {
      const auto size = static_cast<int64_t>(bpe->vocabulary().size());
      id = added.empty() ? size : std::max<int64_t>(size, added.rbegin()->first + int64_t{1});
    }
    if (declared.id && *declared.id != id) {
      fail_input(declared.where, "gives '" + token.content + "' the id " +
                                     std::to_string(*declared.id) + ", but " +
                                     (fresh ? "the next free one is " : "it has ") +
                                     std::to_string(id) + " by tokenizer.json; the two must agree");
    }
    token.id = static_cast<int32_t>(id);
    if (!declared.overrides && listed.contains(token.content)) continue;
    if (declared.id) listed.insert(token.content);
    const auto known = added.find(token.id);
    if (known != added.end()) {
      const AddedToken& old = known->second;
      const bool same = old.lstrip == token.lstrip && old.rstrip == token.rstrip &&
                        old.single_word == token.single_word && old.normalized == token.normalized;
      if (!same) {
        notes.push_back(declared.where + ": its flags for '" + token.content +
                        "' (lstrip, rstrip, single_word, normalized) differ from tokenizer.json's "
                        "and count, as in transformers");
      }
    }
    if (fresh && !declared.id) {
      notes.push_back(declared.where + " is '" + token.content +
                      "', which has no id anywhere; as in transformers it gets a new one, " +
                      std::to_string(id));
    }
    added_ids[token.content] = token.id;
    added[token.id] = token;
  }
  for (const auto& [id, token] : added) {
    if (token.special) special.insert(token.content);
  }
  const auto id_of = [&](const std::optional<std::string>& content) -> std::optional<int32_t> {
    if (!content || find(*content) < 0) return std::nullopt;
    return find(*content);
  };
  bos = id_of(files.bos);
  eos = id_of(files.eos);
}

// Makes the matchers of all added tokens.
void Tokenizer::Parts::match_added_tokens() {
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
const std::vector<std::string>& Tokenizer::notes() const { return parts_->notes; }
std::optional<int32_t> Tokenizer::bos_id() const { return parts_->bos; }
std::optional<int32_t> Tokenizer::eos_id() const { return parts_->eos; }

bool Tokenizer::has_id(int32_t id) const { return parts_->tokens.contains(id); }

}  // namespace lorashard
