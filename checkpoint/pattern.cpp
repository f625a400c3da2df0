#define PCRE2_CODE_UNIT_WIDTH 8
#include "checkpoint/pattern.h"

#include <pcre2.h>

#include "checkpoint/python_regex.h"
#include "configs/error.h"

namespace lorashard {
namespace {

std::string pcre2_message(int code) {
  char text[256] = {};
  pcre2_get_error_message(code, reinterpret_cast<PCRE2_UCHAR*>(text), sizeof text);
  return text;
}

using MatchData = std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)>;

}  // namespace

Pattern::Pattern(const std::string& expression, const std::string& where)
    : expression_(expression), where_(where) {
  refuse_unlike_python(expression, where);
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(expression.data()),
                                   expression.size(), PCRE2_UTF, &error, &offset, nullptr);
  if (!code)
    fail_input(where, "\"" + expression + "\" is not a regular expression: " +
                          pcre2_message(error) + " (character " + std::to_string(offset + 1) + ")");
  code_ =
      std::shared_ptr<void>(code, [](void* c) { pcre2_code_free(static_cast<pcre2_code*>(c)); });
}

bool Pattern::match(const std::string& text, unsigned options, void* data) const {
  const int count =
      pcre2_match(static_cast<pcre2_code*>(code_.get()), reinterpret_cast<PCRE2_SPTR>(text.data()),
                  text.size(), 0, options, static_cast<pcre2_match_data*>(data), nullptr);
  if (count >= 0) return true;
  if (count == PCRE2_ERROR_NOMATCH) return false;
  fail_input(where_, "the regular expression \"" + expression_ + "\" fails on \"" + text +
                         "\": " + pcre2_message(count));
}

bool Pattern::matches_whole(const std::string& text) const {
  const MatchData data(
      pcre2_match_data_create_from_pattern(static_cast<pcre2_code*>(code_.get()), nullptr),
      pcre2_match_data_free);
  return match(text, PCRE2_ANCHORED | PCRE2_ENDANCHORED, data.get());
}

bool Pattern::matches_start(const std::string& text) const {
  const MatchData data(
      pcre2_match_data_create_from_pattern(static_cast<pcre2_code*>(code_.get()), nullptr),
      pcre2_match_data_free);
  return match(text, PCRE2_ANCHORED, data.get());
}

std::optional<std::string> Pattern::group_of_start(const std::string& text,
                                                   const char* group) const {
  const MatchData data(
      pcre2_match_data_create_from_pattern(static_cast<pcre2_code*>(code_.get()), nullptr),
      pcre2_match_data_free);
  if (!match(text, PCRE2_ANCHORED, data.get())) return std::nullopt;
  PCRE2_UCHAR* value = nullptr;
  PCRE2_SIZE length = 0;
  if (pcre2_substring_get_byname(data.get(), reinterpret_cast<PCRE2_SPTR>(group), &value,
                                 &length) != 0)
    return std::nullopt;
  std::string result(reinterpret_cast<const char*>(value), length);
  pcre2_substring_free(value);
  return result;
}

}  // namespace lorashard
