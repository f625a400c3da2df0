#include "trainer/data/tokenizer/added_tokens.h"

#include <algorithm>

#include "trainer/data/tokenizer/unicode.h"
#include "trainer/data/tokenizer/utf8.h"

namespace lorashard {
namespace {

bool word_before(std::string_view text, size_t at) {
  if (at == 0) return false;
  const char* p = previous_code_point(text.data() + at);
  return is_added_word(next_code_point(p));
}

bool word_after(std::string_view text, size_t at) {
  if (at == text.size()) return false;
  const char* p = text.data() + at;
  return is_added_word(next_code_point(p));
}

size_t spaces_before(std::string_view text, size_t at) {
  const char* p = text.data() + at;
  while (p > text.data()) {
    const char* previous = previous_code_point(p);
    const char* q = previous;
    if (!is_space(next_code_point(q))) break;
    p = previous;
  }
  return static_cast<size_t>(p - text.data());
}

size_t spaces_after(std::string_view text, size_t at) {
  const char* p = text.data() + at;
  const char* const end = text.data() + text.size();
  while (p < end) {
    const char* next = p;
    if (!is_space(next_code_point(next))) break;
    p = next;
  }
  return static_cast<size_t>(p - text.data());
}

}  // namespace

void AddedTokenMatcher::add(const std::string& pattern, const AddedToken& token) {
  uint32_t node = 0;
  for (const char c : pattern) {
    const auto byte = static_cast<unsigned char>(c);
    auto& next = nodes_[node].next;
    auto found =
        std::lower_bound(next.begin(), next.end(), std::pair<unsigned char, uint32_t>(byte, 0));
    if (found == next.end() || found->first != byte) {
      const auto fresh = static_cast<uint32_t>(nodes_.size());
      next.insert(found, {byte, fresh});
      nodes_.emplace_back();  // invalidates `next`
      node = fresh;
    } else {
      node = found->second;
    }
  }
  nodes_[node].token = &token;
  first_[static_cast<unsigned char>(pattern[0])] = true;
}

const AddedToken* AddedTokenMatcher::longest_at(std::string_view text, size_t at,
                                                size_t& end) const {
  const AddedToken* longest = nullptr;
  uint32_t node = 0;
  for (size_t i = at; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const auto& next = nodes_[node].next;
    const auto found =
        std::lower_bound(next.begin(), next.end(), std::pair<unsigned char, uint32_t>(byte, 0));
    if (found == next.end() || found->first != byte) break;
    node = found->second;
    if (nodes_[node].token != nullptr) {
      longest = nodes_[node].token;
      end = i + 1;
    }
  }
  return longest;
}

void AddedTokenMatcher::split(std::string_view text, const Sink& sink) const {
  size_t covered = 0;
  for (size_t at = 0; at < text.size();) {
    size_t stop = at;
    const AddedToken* token =
        first_[static_cast<unsigned char>(text[at])] ? longest_at(text, at, stop) : nullptr;
    if (token == nullptr) {
      ++at;
      continue;
    }
    size_t start = at;
    at = stop;  // the search goes on behind the match, whatever becomes of it
    if (token->single_word && (word_before(text, start) || word_after(text, stop))) continue;
    // Spaces that the previous token took stay with it.
    if (token->lstrip) start = std::max(spaces_before(text, start), covered);
    if (token->rstrip) stop = spaces_after(text, stop);
    if (covered < start) sink(covered, start, nullptr);
    sink(start, stop, token);
    covered = stop;
  }
  if (covered != text.size()) sink(covered, text.size(), nullptr);
}

}  // namespace lorashard
