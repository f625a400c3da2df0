#include <cudasim/device_language.h>
#include <cudasim/fiber.h>
#include <cudasim/sanitizers.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>

namespace cudasim {

constinit thread_local SimThread* current_thread = nullptr;

namespace {

namespace context = boost::context::detail;

constexpr size_t kPage = 4096;
constexpr size_t kStack = (kAsan || kTsan ? size_t{256} : size_t{64}) << 10;

constinit thread_local Fiber home;
constinit thread_local Fiber* running = nullptr;

void arrived([[maybe_unused]] Fiber& at, [[maybe_unused]] Fiber& from) {
#ifdef CUDASIM_ASAN
  const void* stack = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(at.asan_stack, &stack, &bytes);
  if (&from == &home && !home.stack) {
    home.stack = static_cast<char*>(const_cast<void*>(stack));
    home.stack_bytes = bytes;
  }
#endif
  running = &at;
  current_thread = at.thread;
}

// Who is being switched to: what a fresh fiber knows of itself.
constinit thread_local Fiber* target = nullptr;

void begin(context::transfer_t transfer) {
  Fiber& from = *static_cast<Fiber*>(transfer.data);
  from.context = transfer.fctx;
  Fiber& me = *target;
  arrived(me, from);
  me.entry(me);
  std::abort();  // entry returned
}

}  // namespace

Fiber& home_fiber() {
  if (!running) {
    running = &home;
#if CUDASIM_TSAN
    home.tsan_fiber = __tsan_get_current_fiber();
#endif
  }
  return home;
}

Fiber& running_fiber() { return running ? *running : home_fiber(); }

Fiber* make_fiber(void (*entry)(Fiber&)) {
  // The lowest page stays out of reach, so that an overflow ends the program at once.
  void* memory = mmap(nullptr, kPage + kStack, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, kPage, PROT_NONE) != 0) {
    std::perror("cudasim: cannot map a stack");
    std::abort();
  }
  auto* fiber = new Fiber;
  fiber->entry = entry;
  fiber->stack = static_cast<char*>(memory) + kPage;
  fiber->stack_bytes = kStack;
#ifdef CUDASIM_ASAN
  // What the fibers of a failed block hold is not lost: they stand still for ever.
  __lsan_register_root_region(fiber->stack, kStack);
#endif
#if CUDASIM_TSAN
  fiber->tsan_fiber = __tsan_create_fiber(0);
#endif
  // Stacks begin at differing offsets, else their tops all fall into the same sets of the cache.
  thread_local unsigned color = 0;
  const size_t top = kStack - size_t(color++ % 61) * 192;
  fiber->context = context::make_fcontext(fiber->stack + top, top, begin);
  return fiber;
}

void switch_to(Fiber& to) {
  Fiber& me = *running;
  target = &to;
#ifdef CUDASIM_ASAN
  __sanitizer_start_switch_fiber(&me.asan_stack, to.stack, to.stack_bytes);
#endif
#if CUDASIM_TSAN
  __tsan_switch_to_fiber(to.tsan_fiber, 1);  // 1: the switch orders nothing
#endif
  const context::transfer_t transfer = context::jump_fcontext(to.context, &me);
  Fiber& from = *static_cast<Fiber*>(transfer.data);
  from.context = transfer.fctx;
  arrived(me, from);
}

}  // namespace cudasim
