// Byte-pair encoding of one word: characters become symbols, and the pair of neighbours with the
// lowest rank (the leftmost of equals) is merged until no pair has a rank (Sennrich et al. 2016).
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "trainer/data/tokenizer/tokenizer_json.h"

namespace lorashard {

// Token text to id, without allocation in look-ups.
class TokenTable {
 public:
  void reserve(size_t tokens, size_t bytes);
  // Returns false if the text is there already. REQUIRES: reserve(…) announced enough.
  bool insert(std::string_view text, int32_t id);
  int32_t find(std::string_view text) const;  // -1: not there

 private:
  struct Slot {
    uint32_t hash, offset, length;
    int32_t id = -1;
  };
  std::string bytes_;
  std::vector<Slot> slots_;
  size_t mask_ = 0;
};

// Remembers the ids of words, up to a fixed number of bytes; when full it starts afresh.
class WordCache {
 public:
  WordCache();
  static constexpr size_t kLongestWord = 128;  // bytes; longer words hardly repeat
  // Appends the ids of `word` to `ids` and returns true, or returns false.
  bool find(std::string_view word, uint32_t hash, std::vector<int32_t>& ids) const;
  void insert(std::string_view word, uint32_t hash, const int32_t* ids, size_t count);

 private:
  static constexpr size_t kSlots = 1 << 16, kMaxWords = kSlots / 2;
  struct Slot {
    uint32_t hash, word, ids;  // offsets into words_ and ids_
    uint16_t length = 0, count;
  };
  std::vector<Slot> slots_;
  std::string words_;
  std::vector<int32_t> ids_;
  size_t used_ = 0;
};

// What one encoding thread needs: the cache and buffers that keep their capacity.
struct BpeWorkspace {
  struct Symbol {
    int32_t id, previous, next, end;  // end: in the word, where it is asked for
  };
  struct Candidate {
    uint32_t rank;
    int32_t position, merged;
  };
  WordCache cache;
  std::vector<Symbol> symbols;
  std::vector<Candidate> heap;
  std::vector<int32_t> ids, ranks_and_ids;
  std::vector<int32_t> ends;  // of ids, in the word
  std::string character;
};

class Bpe {
 public:
  // Takes vocabulary and merges out of `json`. Errors: status 2, what is wrong with the model.
  Bpe(TokenizerJson& json, Fields& model);

  // Whether the vocabulary has a token for each of the 256 bytes, written as byte-level characters;
  // then encode_bytes(word) stands for encode(word written in byte-level characters).
  bool covers_bytes() const { return covers_bytes_; }
  void encode_bytes(std::string_view word, BpeWorkspace& work, std::vector<int32_t>& ids) const;
  // REQUIRES: word is valid UTF-8.
  void encode(std::string_view word, BpeWorkspace& work, std::vector<int32_t>& ids) const;
  // As encode_bytes (`bytes`) or encode, without the cache. work.ids receives the ids and work.ends
  // for each of them the end of its bytes in `word`; each begins where the one before it ends.
  void encode_with_ends(std::string_view word, bool bytes, BpeWorkspace& work) const;

  int32_t token_to_id(std::string_view token) const { return table_.find(token); }
  const std::vector<std::pair<std::string, int32_t>>& vocabulary() const { return vocabulary_; }

 private:
  struct Merge {
    uint64_t pair;
    uint32_t rank;
    int32_t merged;
  };
  void read_merges(const TokenizerJson& json);
  const Merge* find_merge(int32_t left, int32_t right) const;
  void insert_merge(int32_t left, int32_t right, uint32_t rank, int32_t merged);
  // Cuts `word` where no merge can cross, and encodes the parts.
  void encode_parts(std::string_view word, BpeWorkspace& work, std::vector<int32_t>& ids) const;
  void encode_cached(std::string_view word, bool bytes, bool whole_first, BpeWorkspace& work,
                     std::vector<int32_t>& ids) const;
  void characters_to_ids(std::string_view word, BpeWorkspace& work) const;
  void merge(BpeWorkspace& work) const;
  void merge_short(std::vector<int32_t>& ids, std::vector<int32_t>& scratch) const;
  void merge_long(BpeWorkspace& work, bool with_ends) const;

  std::string file_;
  std::vector<std::pair<std::string, int32_t>> vocabulary_;
  TokenTable table_, byte_table_;
  std::vector<Merge> merges_;  // open addressing; pair == kNoPair: free
  size_t merge_mask_ = 0;
  std::array<int32_t, 256> byte_token_{};      // of each byte's byte-level character
  std::array<int32_t, 256> fallback_token_{};  // "<0xHH>", -1 where the vocabulary has none
  int32_t unknown_ = -1;
  std::string unknown_name_;
  std::string prefix_, suffix_;
  bool fuse_unknown_ = false, byte_fallback_ = false, ignore_merges_ = false;
  bool covers_bytes_ = false;
  bool cuts_before_metaspace_ = false;  // no token has U+2581 behind another character
};

}  // namespace lorashard
