// Fibers: stacks that an OS thread switches between by hand.
#pragma once

#include <boost/context/detail/fcontext.hpp>
#include <cstddef>

namespace cudasim {

struct SimThread;

struct Fiber {
  boost::context::detail::fcontext_t context = nullptr;
  void (*entry)(Fiber&) = nullptr;
  char* stack = nullptr;  // for AddressSanitizer
  size_t stack_bytes = 0;
  void* asan_stack = nullptr;
  void* tsan_fiber = nullptr;
  SimThread* thread = nullptr;  // what runs on it
};

// The fiber that stands for this OS thread's own stack.
Fiber& home_fiber();
Fiber& running_fiber();

// A fiber that runs entry(fiber) when first switched to; entry must never return. Lives as long as
// the program: its owner keeps idle fibers for later.
Fiber* make_fiber(void (*entry)(Fiber&));

// Continues `to` and returns when something switches back to the caller. Sets current_thread.
// Orders nothing in ThreadSanitizer's eyes.
void switch_to(Fiber& to);

}  // namespace cudasim
