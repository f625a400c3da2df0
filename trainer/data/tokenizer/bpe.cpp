#include "trainer/data/tokenizer/bpe.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <unordered_map>

#include "configs/error.h"
#include "trainer/data/tokenizer/normalizer.h"
#include "trainer/data/tokenizer/utf8.h"

namespace lorashard {
namespace {

constexpr uint64_t kNoPair = ~uint64_t{0};
constexpr std::string_view kMetaspace = "\xE2\x96\x81";  // U+2581, a space in SentencePiece
constexpr size_t kShortWord = 48;  // symbols; above, a heap beats looking at every pair

// Eight bytes at a time, mixed by multiplication; quality is enough for open addressing.
uint32_t hash_bytes(std::string_view text) {
  constexpr uint64_t kMultiplier = 0x9E3779B97F4A7C15u;
  uint64_t hash = text.size() * kMultiplier;
  const char* p = text.data();
  size_t left = text.size();
  for (; left >= 8; left -= 8, p += 8) {
    uint64_t word;
    std::memcpy(&word, p, 8);
    hash = (hash ^ word) * kMultiplier;
    hash ^= hash >> 29;
  }
  if (left > 0) {
    uint64_t word = 0;
    std::memcpy(&word, p, left);
    hash = (hash ^ word) * kMultiplier;
    hash ^= hash >> 29;
  }
  hash *= kMultiplier;
  return static_cast<uint32_t>(hash >> 32);
}

uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

size_t pair_hash(uint64_t pair) {
  pair *= 0x9E3779B97F4A7C15u;
  return static_cast<size_t>(pair ^ pair >> 32);
}

// Whether U+2581 stands behind another character.
bool has_inner_metaspace(std::string_view token) {
  for (size_t at = token.find(kMetaspace, 1); at != std::string_view::npos;
       at = token.find(kMetaspace, at + 1)) {
    if (!token.substr(0, at).ends_with(kMetaspace)) return true;
  }
  return false;
}

}  // namespace

void TokenTable::reserve(size_t tokens, size_t bytes) {
  slots_.assign(std::bit_ceil(tokens * 2 + 2), Slot{});
  mask_ = slots_.size() - 1;
  bytes_.reserve(bytes);
}

bool TokenTable::insert(std::string_view text, int32_t id) {
  const uint32_t hash = hash_bytes(text);
  size_t at = hash & mask_;
  for (; slots_[at].id >= 0; at = (at + 1) & mask_) {
    const Slot& slot = slots_[at];
    if (slot.hash == hash && std::string_view(bytes_).substr(slot.offset, slot.length) == text) {
      return false;
    }
  }
  slots_[at] = {hash, static_cast<uint32_t>(bytes_.size()), static_cast<uint32_t>(text.size()), id};
  bytes_ += text;
  return true;
}

int32_t TokenTable::find(std::string_view text) const {
  if (slots_.empty()) return -1;
  const uint32_t hash = hash_bytes(text);
  for (size_t at = hash & mask_; slots_[at].id >= 0; at = (at + 1) & mask_) {
    const Slot& slot = slots_[at];
    if (slot.hash == hash && slot.length == text.size() &&
        std::memcmp(bytes_.data() + slot.offset, text.data(), text.size()) == 0) {
      return slot.id;
    }
  }
  return -1;
}

WordCache::WordCache() : slots_(kSlots) {}

bool WordCache::find(std::string_view word, uint32_t hash, std::vector<int32_t>& ids) const {
  for (size_t at = hash & (kSlots - 1); slots_[at].length != 0; at = (at + 1) & (kSlots - 1)) {
    const Slot& slot = slots_[at];
    if (slot.hash == hash && slot.length == word.size() &&
        std::memcmp(words_.data() + slot.word, word.data(), word.size()) == 0) {
      const int32_t* first = ids_.data() + slot.ids;
      if (slot.count == 1) {
        ids.push_back(*first);
      } else {
        ids.insert(ids.end(), first, first + slot.count);
      }
      return true;
    }
  }
  return false;
}

void WordCache::insert(std::string_view word, uint32_t hash, const int32_t* ids, size_t count) {
  if (used_ == kMaxWords) {
    slots_.assign(kSlots, Slot{});
    words_.clear();
    ids_.clear();
    used_ = 0;
  }
  size_t at = hash & (kSlots - 1);
  while (slots_[at].length != 0) at = (at + 1) & (kSlots - 1);
  slots_[at] = {hash, static_cast<uint32_t>(words_.size()), static_cast<uint32_t>(ids_.size()),
                static_cast<uint16_t>(word.size()), static_cast<uint16_t>(count)};
  words_ += word;
  ids_.insert(ids_.end(), ids, ids + count);
  ++used_;
}

Bpe::Bpe(TokenizerJson& json, Fields& model) : file_(json.file) {
  model.ignore("type");
  model.ignore("vocab");
  model.ignore("merges");
  if (const Json* dropout = model.find("dropout")) {
    if (!dropout->is_number()) model.fail("dropout", "must be a number or null");
    if (dropout->get<double>() != 0.0) {
      model.fail("dropout", "must be null or 0: the ids of a text would change from call to call");
    }
  }
  if (!json.has_vocabulary) model.fail("vocab", "is missing; it must map tokens to ids");
  if (!json.has_merges) model.fail("merges", "is missing; it must be a list of token pairs");
  unknown_name_ = model.text_or("unk_token", "");
  prefix_ = model.text_or("continuing_subword_prefix", "");
  suffix_ = model.text_or("end_of_word_suffix", "");
  fuse_unknown_ = model.flag_or("fuse_unk", false);
  byte_fallback_ = model.flag_or("byte_fallback", false);
  ignore_merges_ = model.flag_or("ignore_merges", false);
  model.finish();

  vocabulary_ = std::move(json.vocabulary);
  size_t bytes = 0;
  for (const auto& [token, id] : vocabulary_) bytes += token.size();
  table_.reserve(vocabulary_.size(), bytes);
  byte_table_.reserve(vocabulary_.size(), bytes);
  std::unordered_map<int32_t, size_t> owner;
  owner.reserve(vocabulary_.size());
  std::string raw;
  for (size_t i = 0; i < vocabulary_.size(); ++i) {
    const auto& [token, id] = vocabulary_[i];
    const auto [other, fresh] = owner.emplace(id, i);
    if (!fresh) {
      model.fail("vocab", "gives id " + std::to_string(id) + " to both '" +
                              vocabulary_[other->second].first + "' and '" + token + "'");
    }
    table_.insert(token, id);
    raw.clear();
    bool byte_level = true;
    for (const char* p = token.data(); byte_level && p < token.data() + token.size();) {
      const int byte = byte_of_character(next_code_point(p));
      byte_level = byte >= 0;
      raw += static_cast<char>(byte);
    }
    if (byte_level) byte_table_.insert(raw, id);
  }
  covers_bytes_ = prefix_.empty() && suffix_.empty();
  for (int byte = 0; byte < 256; ++byte) {
    const auto index = static_cast<size_t>(byte);
    byte_token_[index] = table_.find(byte_level_character(static_cast<unsigned char>(byte)));
    covers_bytes_ = covers_bytes_ && byte_token_[index] >= 0;
    char name[8];
    std::snprintf(name, sizeof(name), "<0x%02X>", static_cast<unsigned>(byte));
    fallback_token_[index] = table_.find(name);
  }
  if (!unknown_name_.empty()) unknown_ = table_.find(unknown_name_);
  read_merges(json);
}

void Bpe::read_merges(const TokenizerJson& json) {
  merges_.assign(std::bit_ceil(json.merges.size() * 2 + 2), Merge{kNoPair, 0, 0});
  merge_mask_ = merges_.size() - 1;
  cuts_before_metaspace_ = prefix_.empty() && suffix_.empty() && table_.find(kMetaspace) >= 0;
  std::string merged;
  for (size_t rank = 0; rank < json.merges.size(); ++rank) {
    const auto& [left, right] = json.merges[rank];
    const auto known = [&](std::string_view token) {
      const int32_t id = table_.find(token);
      if (id < 0) {
        fail_input(file_, "model.merges[" + std::to_string(rank) + "] ('" + left + "', '" + right +
                              "'): the vocabulary has no token '" + std::string(token) + "'");
      }
      return id;
    };
    const int32_t left_id = known(left), right_id = known(right);
    if (right.size() < prefix_.size()) {
      fail_input(file_, "model.merges[" + std::to_string(rank) + "]: '" + right +
                            "' is shorter than continuing_subword_prefix");
    }
    merged.assign(left).append(right, prefix_.size());
    insert_merge(left_id, right_id, static_cast<uint32_t>(rank), known(merged));
    if (cuts_before_metaspace_ && has_inner_metaspace(merged)) cuts_before_metaspace_ = false;
  }
}

const Bpe::Merge* Bpe::find_merge(int32_t left, int32_t right) const {
  const uint64_t pair = pair_key(left, right);
  for (size_t at = pair_hash(pair) & merge_mask_; merges_[at].pair != kNoPair;
       at = (at + 1) & merge_mask_) {
    if (merges_[at].pair == pair) return &merges_[at];
  }
  return nullptr;
}

void Bpe::insert_merge(int32_t left, int32_t right, uint32_t rank, int32_t merged) {
  const uint64_t pair = pair_key(left, right);
  size_t at = pair_hash(pair) & merge_mask_;
  while (merges_[at].pair != kNoPair && merges_[at].pair != pair) at = (at + 1) & merge_mask_;
  merges_[at] = {pair, rank, merged};  // a pair listed twice has its later rank
}

void Bpe::encode_bytes(std::string_view word, BpeWorkspace& work, std::vector<int32_t>& ids) const {
  if (!word.empty()) encode_cached(word, true, ignore_merges_, work, ids);
}

void Bpe::encode(std::string_view word, BpeWorkspace& work, std::vector<int32_t>& ids) const {
  if (word.empty()) return;
  if (!cuts_before_metaspace_) return encode_cached(word, false, ignore_merges_, work, ids);
  if (ignore_merges_) {
    const int32_t id = table_.find(word);
    if (id >= 0) return ids.push_back(id);
  }
  encode_parts(word, work, ids);
}

void Bpe::encode_parts(std::string_view word, BpeWorkspace& work, std::vector<int32_t>& ids) const {
  size_t begin = 0;
  while (begin < word.size()) {
    size_t end = begin;
    while (word.substr(end).starts_with(kMetaspace)) end += kMetaspace.size();
    end = std::min(word.find(kMetaspace, end), word.size());
    encode_cached(word.substr(begin, end - begin), false, false, work, ids);
    begin = end;
  }
}

void Bpe::encode_cached(std::string_view word, bool bytes, bool whole_first, BpeWorkspace& work,
                        std::vector<int32_t>& ids) const {
  const bool cacheable = word.size() <= WordCache::kLongestWord;
  const uint32_t hash = cacheable ? hash_bytes(word) : 0;
  if (cacheable && work.cache.find(word, hash, ids)) return;
  work.ids.clear();
  const int32_t whole = !whole_first ? -1 : bytes ? byte_table_.find(word) : table_.find(word);
  if (whole >= 0) {
    work.ids.push_back(whole);
  } else {
    if (bytes) {
      for (const char c : word) {
        work.ids.push_back(byte_token_[static_cast<unsigned char>(c)]);
      }
    } else {
      characters_to_ids(word, work);
    }
    merge(work);
  }
  ids.insert(ids.end(), work.ids.begin(), work.ids.end());
  if (cacheable) work.cache.insert(word, hash, work.ids.data(), work.ids.size());
}

void Bpe::encode_with_ends(std::string_view word, bool bytes, BpeWorkspace& work) const {
  work.ids.clear();
  work.ends.clear();
  const int32_t whole = !ignore_merges_ ? -1 : bytes ? byte_table_.find(word) : table_.find(word);
  if (whole >= 0) {
    work.ids = {whole};
    work.ends = {static_cast<int32_t>(word.size())};
    return;
  }
  if (bytes) {
    for (const char c : word) {
      work.ids.push_back(byte_token_[static_cast<unsigned char>(c)]);
      work.ends.push_back(static_cast<int32_t>(work.ids.size()));
    }
  } else {
    characters_to_ids(word, work);
  }
  merge_long(work, true);
}

// Writes the id of each character to work.ids, with the library's treatment of unknown ones, and to
// work.ends where it ends.
void Bpe::characters_to_ids(std::string_view word, BpeWorkspace& work) const {
  const char* const begin = word.data();
  const char* const end = begin + word.size();
  bool pending = false;  // an unknown token that is not written yet
  size_t last = 0;       // end of the last character that an id stands for
  work.ends.clear();
  const auto push = [&](int32_t id, size_t behind) {
    work.ids.push_back(id);
    work.ends.push_back(static_cast<int32_t>(behind));
  };
  for (const char* p = begin; p < end;) {
    const auto length = static_cast<size_t>(utf8_length(*p));
    std::string_view character(p, length);
    const bool first = p == begin;
    const auto from = static_cast<size_t>(p - begin);
    p += length;
    if ((!first && !prefix_.empty()) || (p == end && !suffix_.empty())) {
      work.character.assign(first ? "" : prefix_).append(character).append(p == end ? suffix_ : "");
      character = work.character;
    }
    const int32_t id = table_.find(character);
    if (id >= 0) {
      if (pending) push(unknown_, last);
      pending = false;
      push(id, last = from + length);
      continue;
    }
    if (byte_fallback_) {
      const auto token = [&](char c) { return fallback_token_[static_cast<unsigned char>(c)]; };
      if (std::all_of(character.begin(), character.end(), [&](char c) { return token(c) >= 0; })) {
        // An unknown token that waits stays behind these bytes, as in the library.
        last = from + length;
        for (const char c : character) push(token(c), last);
        continue;
      }
    }
    if (unknown_name_.empty()) continue;  // nothing stands for it: dropped
    if (unknown_ < 0) {
      fail_input(file_, "model.unk_token '" + unknown_name_ + "' is needed for '" +
                            std::string(character) + "' but is not in the vocabulary");
    }
    if (pending && !fuse_unknown_) push(unknown_, last);
    pending = true;
    last = from + length;
  }
  if (pending) push(unknown_, last);
}

void Bpe::merge(BpeWorkspace& work) const {
  if (work.ids.size() < 2) return;
  if (work.ids.size() <= kShortWord) {
    merge_short(work.ids, work.ranks_and_ids);
  } else {
    merge_long(work, false);
  }
}

void Bpe::merge_short(std::vector<int32_t>& ids, std::vector<int32_t>& scratch) const {
  constexpr uint32_t kNone = ~uint32_t{0};
  size_t count = ids.size();
  scratch.resize(2 * count);
  auto* ranks = reinterpret_cast<uint32_t*>(scratch.data());  // of the pair (i, i + 1)
  int32_t* merged = scratch.data() + count;
  const auto look_up = [&](size_t i) {
    const Merge* found = find_merge(ids[i], ids[i + 1]);
    ranks[i] = found != nullptr ? found->rank : kNone;
    merged[i] = found != nullptr ? found->merged : 0;
  };
  for (size_t i = 0; i + 1 < count; ++i) look_up(i);
  while (count > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < count; ++i) {
      if (ranks[i] < ranks[best]) best = i;
    }
    if (ranks[best] == kNone) break;
    ids[best] = merged[best];
    const size_t behind = count - best - 2;
    std::memmove(&ids[best + 1], &ids[best + 2], behind * sizeof(int32_t));
    std::memmove(&ranks[best + 1], &ranks[best + 2], behind * sizeof(uint32_t));
    std::memmove(&merged[best + 1], &merged[best + 2], behind * sizeof(int32_t));
    --count;
    if (best + 1 < count) look_up(best);
    if (best > 0) look_up(best - 1);
  }
  ids.resize(count);
}

void Bpe::merge_long(BpeWorkspace& work, bool with_ends) const {
  using Candidate = BpeWorkspace::Candidate;
  std::vector<BpeWorkspace::Symbol>& symbols = work.symbols;
  std::vector<Candidate>& heap = work.heap;
  const auto count = static_cast<int32_t>(work.ids.size());
  symbols.resize(work.ids.size());
  for (int32_t i = 0; i < count; ++i) {
    symbols[static_cast<size_t>(i)] = {work.ids[static_cast<size_t>(i)], i - 1,
                                       i + 1 < count ? i + 1 : -1,
                                       with_ends ? work.ends[static_cast<size_t>(i)] : 0};
  }
  const auto at = [&](int32_t i) -> BpeWorkspace::Symbol& {
    return symbols[static_cast<size_t>(i)];
  };
  const auto later = [](const Candidate& a, const Candidate& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
  };
  const auto candidate = [&](int32_t left, int32_t right) {
    const Merge* found = find_merge(at(left).id, at(right).id);
    if (found != nullptr) heap.push_back({found->rank, left, found->merged});
    return found != nullptr;
  };
  heap.clear();
  for (int32_t i = 0; i + 1 < count; ++i) candidate(i, i + 1);
  std::make_heap(heap.begin(), heap.end(), later);
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), later);
    const Candidate top = heap.back();
    heap.pop_back();
    BpeWorkspace::Symbol& left = at(top.position);
    if (left.id < 0 || left.next < 0) continue;  // merged away, or the last
    // The pair may have changed since it was noted; then it gives another token.
    const Merge* now = find_merge(left.id, at(left.next).id);
    if (now == nullptr || now->merged != top.merged) continue;
    BpeWorkspace::Symbol& right = at(left.next);
    left.id = top.merged;
    left.end = right.end;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) at(left.next).previous = top.position;
    if (left.previous >= 0 && candidate(left.previous, top.position)) {
      std::push_heap(heap.begin(), heap.end(), later);
    }
    if (left.next >= 0 && candidate(top.position, left.next)) {
      std::push_heap(heap.begin(), heap.end(), later);
    }
  }
  work.ids.clear();
  work.ends.clear();
  for (const BpeWorkspace::Symbol& symbol : symbols) {
    if (symbol.id < 0) continue;
    work.ids.push_back(symbol.id);
    if (with_ends) work.ends.push_back(symbol.end);
  }
}

}  // namespace lorashard
