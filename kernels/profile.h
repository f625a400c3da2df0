// Spans of time for `train --profile`: what a rank's main thread did when. They are the host's
// time: on the CPU that of the kernel, on CUDA no more than that of enqueuing it. Without a
// profiler a span costs one test of a thread-local pointer, so spans stay built in.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lorashard {

struct ProfileEvent {
  std::string name;
  const char* category;           // "step", "layer", "lora", "kernel", "collective"
  int64_t start_ns, duration_ns;  // start on the steady clock
  double work;                    // flops of a kernel, bytes of a collective; 0: not said
};

class ProfileSpan;

// Collects the spans of the thread that attached it. Not copyable while attached.
class Profiler {
 public:
  Profiler() = default;
  Profiler(const Profiler&) = delete;
  Profiler& operator=(const Profiler&) = delete;
  ~Profiler() { detach(); }
  void attach() { current() = this; }
  void detach() {
    if (current() == this) current() = nullptr;
  }
  std::vector<ProfileEvent> events;
  const ProfileSpan* innermost = nullptr;  // of the spans that are open

  // The profiler of this thread, or null.
  static Profiler*& current() {
    static thread_local Profiler* profiler = nullptr;
    return profiler;
  }
};

// From construction to destruction, if a profiler is attached.
class ProfileSpan {
 public:
  ProfileSpan(const char* category, const char* name, double work = 0)
      : profiler_(Profiler::current()) {
    if (!profiler_) return;
    event_ = {name, category, now(), 0, work};
    outer_ = std::exchange(profiler_->innermost, this);
  }
  ProfileSpan(const ProfileSpan&) = delete;
  ProfileSpan& operator=(const ProfileSpan&) = delete;
  ~ProfileSpan() {
    if (!profiler_) return;
    event_.duration_ns = now() - event_.start_ns;
    profiler_->innermost = outer_;
    profiler_->events.push_back(std::move(event_));
  }

  // The names of this span and those around it, outermost first, without those of kernels:
  // "step/layer.3.mlp.backward/lora".
  std::string path() const {
    std::string outer = outer_ ? outer_->path() : "";
    if (std::string_view(event_.category) == "kernel") return outer;
    return outer.empty() ? event_.name : outer + "/" + event_.name;
  }

 private:
  static int64_t now() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }
  Profiler* profiler_;
  ProfileEvent event_;
  const ProfileSpan* outer_ = nullptr;
};

}  // namespace lorashard
