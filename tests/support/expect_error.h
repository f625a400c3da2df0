// Expecting the project's Error with its exit status and a part of its text.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "configs/error.h"

namespace lorashard::test {

// body must throw an Error of this status whose text is one line and contains every one of `parts`.
inline void expect_error(int exit_status, const std::vector<std::string>& parts,
                         const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& e) {
    const std::string text = e.what();
    EXPECT_EQ(e.exit_status, exit_status) << text;
    EXPECT_EQ(text.find('\n'), std::string::npos) << text;
    for (const std::string& part : parts)
      EXPECT_NE(text.find(part), std::string::npos) << "\"" << part << "\" is not in: " << text;
    return;
  }
  ADD_FAILURE() << "no error; expected one with \"" << (parts.empty() ? "" : parts[0]) << "\"";
}

}  // namespace lorashard::test
