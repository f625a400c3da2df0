#include "configs/thread_stacks.h"

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <memory>

namespace lorashard {
namespace {

// Gives this thread a stack for fault handlers and returns it; an empty one where the thread has
// one already. Its pages are the kernel's to count, not the heap's: nothing of ours need point to
// them.
stack_t add_fault_stack() {
  stack_t old{};
  if (sigaltstack(nullptr, &old) == 0 && !(old.ss_flags & SS_DISABLE)) return {};
  stack_t stack{};
  // A frame holds all vector registers, and more of them with each processor.
  stack.ss_size = size_t(std::max<long>(sysconf(_SC_SIGSTKSZ), 64 << 10));
  stack.ss_sp =
      ::mmap(nullptr, stack.ss_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (stack.ss_sp == MAP_FAILED) return {};
  sigaltstack(&stack, nullptr);
  return stack;
}

// This thread's fault stack, from construction to destruction.
class FaultStack {
 public:
  FaultStack() : stack_(add_fault_stack()) {}
  ~FaultStack() {
    if (!stack_.ss_sp) return;
    stack_t off{};
    off.ss_flags = SS_DISABLE;
    sigaltstack(&off, nullptr);
    ::munmap(stack_.ss_sp, stack_.ss_size);
  }
  FaultStack(const FaultStack&) = delete;
  FaultStack& operator=(const FaultStack&) = delete;

 private:
  stack_t stack_;
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

void give_this_thread_a_fault_stack() { add_fault_stack(); }

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
