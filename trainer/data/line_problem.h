// What is wrong with a line of a data file, without the place, which takes reading the file to
// find: Dataset adds it.
#pragma once

#include <string>

#include "checkpoint/json_strict.h"

namespace lorashard {

struct LineProblem {
  std::string what;
};

// A piece of a line, fit for an error's one line.
inline std::string excerpt(const std::string& text) {
  constexpr size_t kLongest = 160;
  return text.size() <= kLongest ? printable(text) : printable(text.substr(0, kLongest)) + "...";
}

}  // namespace lorashard
