// What a long job reports: plain lines, and a progress bar below them when stdout is a terminal.
// Only the rank that has `enabled` prints.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace lorashard {

class Console {
 public:
  explicit Console(bool enabled);
  ~Console();
  bool enabled() const { return enabled_; }
  bool terminal() const { return terminal_; }  // a bar is shown
  // One line on stdout.
  void line(const std::string& text);
  // One line each, as "note: …".
  void notes(const std::vector<std::string>& texts);
  // The bar: done of total, with a short text behind it. Nothing when stdout is no terminal.
  void progress(int64_t done, int64_t total, const std::string& text);

 private:
  void clear_bar();
  bool enabled_, terminal_, bar_shown_ = false;
};

// Notes on stderr, where stdout is for results; on the rank that prints.
void report_notes(const Console& console, const std::vector<std::string>& notes);

// Work that may take long: once it has taken `patience`, one line says so, and end() how long it
// took. Nothing else may be printed meanwhile.
class LongWork {
 public:
  LongWork(Console& console, const std::string& text,
           std::chrono::milliseconds patience = std::chrono::seconds(5));
  ~LongWork() { end(); }
  // " (took 12.3 s)" if the line was printed, else nothing.
  std::string end();

 private:
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::mutex mutex_;
  std::condition_variable ended_;
  bool done_ = false, reported_ = false;
  std::thread waiting_;
};

}  // namespace lorashard
