#include "trainer/data/tokenizer/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "configs/error.h"
#include "trainer/data/tokenizer/utf8.h"

namespace lorashard {
namespace {

std::string pcre2_message(int code) {
  PCRE2_UCHAR text[256];
  pcre2_get_error_message(code, text, sizeof(text));
  return reinterpret_cast<const char*>(text);
}

}  // namespace

struct Regex::Code {
  pcre2_code* pattern = nullptr;
  bool compiled = false;  // by the just-in-time compiler
  ~Code() { pcre2_code_free(pattern); }
};

Regex::Regex(const std::string& pattern, const std::string& where)
    : code_(std::make_unique<Code>()) {
  // Oniguruma's ^ and $ are those of lines, and only \n ends a line.
  std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(
      pcre2_compile_context_create(nullptr), &pcre2_compile_context_free);
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE offset = 0;
  code_->pattern = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                 PCRE2_UTF | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error,
                                 &offset, context.get());
  if (code_->pattern == nullptr) {
    fail_input(where, "regular expression does not compile: " + pcre2_message(error));
  }
  code_->compiled = pcre2_jit_compile(code_->pattern, PCRE2_JIT_COMPLETE) == 0;
}

Regex::~Regex() = default;

void Regex::find_matches(std::string_view text, std::vector<Match>& matches) const {
  matches.clear();
  if (text.empty()) {
    matches.push_back({0, 0, false});
    return;
  }
  std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> data(
      pcre2_match_data_create_from_pattern(code_->pattern, nullptr), &pcre2_match_data_free);
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  size_t previous = 0;   // end of what is covered
  size_t from = 0;       // where the next search begins
  bool matched = false;  // `previous` is the end of a match
  while (from <= text.size()) {
    int count = code_->compiled ? pcre2_jit_match(code_->pattern, subject, text.size(), from,
                                                  PCRE2_NO_UTF_CHECK, data.get(), nullptr)
                                : PCRE2_ERROR_JIT_STACKLIMIT;
    if (count == PCRE2_ERROR_JIT_STACKLIMIT) {  // the interpreter keeps its state on the heap
      count = pcre2_match(code_->pattern, subject, text.size(), from,
                          PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, data.get(), nullptr);
    }
    if (count == PCRE2_ERROR_NOMATCH) break;
    if (count < 0) fail_run("regular expression", pcre2_message(count));
    const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(data.get());
    const size_t begin = bounds[0], end = bounds[1];
    // An empty match right behind the last match does not count; search one character further.
    if (begin == end && matched && end == previous) {
      from += from < text.size() ? static_cast<size_t>(utf8_length(text[from])) : 1;
      continue;
    }
    if (previous != begin) matches.push_back({previous, begin, false});
    matches.push_back({begin, end, true});
    previous = from = end;
    matched = true;
  }
  if (previous != text.size()) matches.push_back({previous, text.size(), false});
}

}  // namespace lorashard
