#include <cudasim/settings.h>

#include <cstdio>
#include <cstdlib>
#include <string_view>

namespace cudasim {
namespace {

[[noreturn]] void refuse(const char* name, const char* value) {
  std::fprintf(stderr, "cudasim: %s=%s is not a setting of the simulator\n", name, value);
  std::exit(2);
}

uint64_t number(const char* name, uint64_t otherwise) {
  const char* value = std::getenv(name);
  return value ? std::strtoull(value, nullptr, 10) : otherwise;
}

Settings from_environment() {
  Settings s;
  if (const char* value = std::getenv("CUDASIM_ORDER")) {
    const std::string_view order = value;
    if (order == "reverse")
      s.threads = Order::REVERSE;
    else if (order == "random")
      s.threads = Order::RANDOM;
    else if (order != "forward")
      refuse("CUDASIM_ORDER", value);
  }
  if (const char* value = std::getenv("CUDASIM_BLOCKS")) {
    const std::string_view order = value;
    s.reverse_blocks = order == "reverse";
    if (order != "reverse" && order != "forward") refuse("CUDASIM_BLOCKS", value);
  }
  s.seed = number("CUDASIM_SEED", s.seed);
  s.guard = number("CUDASIM_GUARD", 1) != 0;
  s.devices = int(number("CUDASIM_DEVICES", uint64_t(s.devices)));
  s.memory_bytes = number("CUDASIM_MEMORY_MIB", s.memory_bytes >> 20) << 20;
  return s;
}

}  // namespace

Settings& settings() {
  static Settings s = from_environment();
  return s;
}

uint64_t next_random() {
  thread_local uint64_t state = settings().seed;
  // SplitMix64 (Steele, Lea, Flood 2014).
  state += 0x9e3779b97f4a7c15u;
  uint64_t z = state;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

}  // namespace cudasim
