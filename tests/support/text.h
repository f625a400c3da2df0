// Text of expected messages.
#pragma once

#include <string>

namespace lorashard {

// `text` with every `from` replaced by `to`, for example a temporary path by "F".
inline std::string replace_all(const std::string& text, const std::string& from,
                               const std::string& to) {
  std::string out;
  size_t at = 0;
  for (size_t found; (found = text.find(from, at)) != std::string::npos; at = found + from.size())
    out.append(text, at, found - at).append(to);
  return out.append(text, at, std::string::npos);
}

}  // namespace lorashard
