#include <cudasim/violation.h>

#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <set>
#include <utility>

namespace cudasim {
namespace {

struct Noted {
  std::mutex mutex;
  std::set<int> devices;
  std::string last, all;

  ~Noted() {
    if (devices.empty()) return;
    std::fflush(stdout);
    std::fprintf(stderr, "cudasim: the program ends with a violation that nobody expected\n");
    std::fflush(stderr);
    std::_Exit(kUntakenStatus);
  }
};

Noted& noted() {
  static Noted n;
  return n;
}

}  // namespace

void set_violation(int device, const std::string& text) {
  Noted& n = noted();
  const std::lock_guard lock(n.mutex);
  n.devices.insert(device);
  n.last = text;
  n.all += text + "\n";
  std::fprintf(stderr, "cudasim: %s\n", text.c_str());
}

bool has_violation(int device) {
  Noted& n = noted();
  const std::lock_guard lock(n.mutex);
  return n.devices.contains(device);
}

const char* violation_text() { return noted().last.c_str(); }

std::string take_violations() {
  Noted& n = noted();
  const std::lock_guard lock(n.mutex);
  n.devices.clear();
  return std::exchange(n.all, {});
}

}  // namespace cudasim
