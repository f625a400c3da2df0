#include "configs/thread_stacks.h"

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <memory>

namespace lorashard {
namespace {

// This thread's stack for fault handlers, from construction to destruction. Empty where there is
// one already.
class FaultStack {
 public:
  FaultStack() {
    stack_t old{};
    if (sigaltstack(nullptr, &old) == 0 && !(old.ss_flags & SS_DISABLE)) return;
    // A frame holds all vector registers, and more of them with each processor.
    const size_t bytes = size_t(std::max<long>(sysconf(_SC_SIGSTKSZ), 64 << 10));
    memory_.reset(new char[bytes]);
    stack_t stack{};
    stack.ss_sp = memory_.get();
    stack.ss_size = bytes;
    sigaltstack(&stack, nullptr);
  }
  ~FaultStack() {
    if (!memory_) return;
    stack_t off{};
    off.ss_flags = SS_DISABLE;
    sigaltstack(&off, nullptr);
  }
  FaultStack(const FaultStack&) = delete;
  FaultStack& operator=(const FaultStack&) = delete;

 private:
  std::unique_ptr<char[]> memory_;
};

struct Start {
  void* (*routine)(void*);
  void* argument;
};

void* start_thread(void* start) {
  const std::unique_ptr<Start> owned(static_cast<Start*>(start));
  const Start begin = *owned;
  const FaultStack stack;  // pthread_exit unwinds, so it goes with the thread in any case
  return begin.routine(begin.argument);
}

}  // namespace

void give_this_thread_a_fault_stack() {
  static FaultStack& kept = *new FaultStack;
  (void)kept;
}

}  // namespace lorashard

// Libraries find this one before the C library's.
extern "C" int pthread_create(pthread_t* thread, const pthread_attr_t* attributes,
                              void* (*routine)(void*), void* argument) noexcept {
  using Create = int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  static const auto create = reinterpret_cast<Create>(dlsym(RTLD_NEXT, "pthread_create"));
  auto* start = new lorashard::Start{routine, argument};
  const int error = create(thread, attributes, lorashard::start_thread, start);
  if (error != 0) delete start;
  return error;
}
