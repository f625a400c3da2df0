// What a long job tells: plain lines, and a progress bar below them when stdout is a terminal. Only
// the rank that has `enabled` prints.
#pragma once

#include <cstdint>
#include <string>

namespace lorashard {

class Console {
 public:
  explicit Console(bool enabled);
  ~Console();
  bool enabled() const { return enabled_; }
  bool terminal() const { return terminal_; }  // a bar is shown
  // One line on stdout.
  void line(const std::string& text);
  // The bar: done of total, with a short text behind it. Nothing when stdout is no terminal.
  void progress(int64_t done, int64_t total, const std::string& text);

 private:
  void clear_bar();
  bool enabled_, terminal_, bar_shown_ = false;
};

}  // namespace lorashard
