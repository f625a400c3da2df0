// Tokens that are cut out of the text before anything else sees it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace lorashard {

struct AddedToken {
  std::string content;  // as the file has it
  int32_t id = 0;
  bool single_word = false, lstrip = false, rstrip = false, normalized = true, special = false;
};

// Finds added tokens: at each place the longest, from left to right, without overlap.
class AddedTokenMatcher {
 public:
  // What `text` is cut into: runs of text (token == nullptr) and tokens.
  using Sink = std::function<void(size_t begin, size_t end, const AddedToken* token)>;

  // `pattern` is what is sought in the text for `token`, which must outlive the matcher.
  void add(const std::string& pattern, const AddedToken& token);
  bool empty() const { return nodes_.size() == 1; }
  // Calls `sink` in order; runs of text are never empty.
  void split(std::string_view text, const Sink& sink) const;

 private:
  struct Node {
    std::vector<std::pair<unsigned char, uint32_t>> next;  // byte, node; ascending bytes
    const AddedToken* token = nullptr;
  };
  const AddedToken* longest_at(std::string_view text, size_t at, size_t& end) const;
  std::vector<Node> nodes_{1};
  bool first_[256] = {};  // bytes that begin a pattern
};

}  // namespace lorashard
