// Hand-written splitting for the regular expressions that most byte-level tokenizers use.
//
// Each pattern covers every text without gaps, so splitting is a chain of matches. The general
// path (regex.h) gives the same words; a test compares the two.
#pragma once

#include <optional>
#include <string_view>

namespace lorashard {

enum class WordPattern {
  kGpt2,    // '(s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
  kLlama3,  // contractions in any case, digits in groups of three, newlines kept together
  kQwen2,   // as Llama 3 with single digits
};

// The pattern that this regular expression is, if it is one of them.
std::optional<WordPattern> known_word_pattern(std::string_view regex);

// The regular expression of GPT-2, which ByteLevel's use_regex stands for.
extern const std::string_view kGpt2Regex;

// End of the word that begins at `p`. REQUIRES: p < end, [p, end) valid UTF-8.
const char* end_of_word(WordPattern pattern, const char* p, const char* end);

}  // namespace lorashard
