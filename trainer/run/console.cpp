#include "trainer/run/console.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "parallel/mpi.h"

namespace lorashard {

// mpirun gives its ranks a terminal of their own even where its output goes to a file, so under a
// launcher there is no telling, and lines are the safe choice.
Console::Console(bool enabled)
    : enabled_(enabled),
      terminal_(enabled && isatty(STDOUT_FILENO) && !started_by_mpi_launcher()) {}

Console::~Console() { clear_bar(); }

void Console::clear_bar() {
  if (!bar_shown_) return;
  std::fputs("\r\x1b[K", stdout);
  std::fflush(stdout);
  bar_shown_ = false;
}

void Console::line(const std::string& text) {
  if (!enabled_) return;
  clear_bar();
  std::fputs((text + "\n").c_str(), stdout);
  std::fflush(stdout);
}

void Console::notes(const std::vector<std::string>& texts) {
  for (const std::string& text : texts) line("note: " + text);
}

void Console::progress(int64_t done, int64_t total, const std::string& text) {
  if (!terminal_ || total <= 0) return;
  constexpr int kWidth = 30;
  const int filled = int(kWidth * std::clamp<int64_t>(done, 0, total) / total);
  const std::string bar = "\r[" + std::string(size_t(filled), '=') +
                          std::string(size_t(kWidth - filled), ' ') + "] " + std::to_string(done) +
                          "/" + std::to_string(total) + " " + text + "\x1b[K";
  std::fputs(bar.c_str(), stdout);
  std::fflush(stdout);
  bar_shown_ = true;
}

void report_notes(const Console& console, const std::vector<std::string>& notes) {
  if (!console.enabled()) return;
  for (const std::string& note : notes) std::fprintf(stderr, "note: %s\n", note.c_str());
}

LongWork::LongWork(Console& console, const std::string& text, std::chrono::milliseconds patience) {
  if (!console.enabled()) return;
  waiting_ = std::thread([this, &console, text, patience] {
    std::unique_lock lock(mutex_);
    if (ended_.wait_for(lock, patience, [&] { return done_; })) return;
    console.line(text);
    reported_ = true;
  });
}

std::string LongWork::end() {
  if (!waiting_.joinable()) return "";
  {
    const std::lock_guard lock(mutex_);
    done_ = true;
  }
  ended_.notify_one();
  waiting_.join();
  const auto took = std::chrono::steady_clock::now() - start_;
  return reported_ ? fmt::format(" (took {:.1f} s)", std::chrono::duration<double>(took).count())
                   : "";
}

}  // namespace lorashard
