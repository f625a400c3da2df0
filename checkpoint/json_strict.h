// JSON read without forgiving anything: a repeated key is an error like a syntax error is.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace lorashard {

// Parses UTF-8 JSON. Errors (status 2) read "WHERE: …" with line and column of the mistake, or the
// repeated key.
nlohmann::json parse_json_strict(std::string_view text, const std::string& where);

// A name from a file, fit for an error's one line: control characters shown as '?'.
std::string printable(std::string text);

}  // namespace lorashard
