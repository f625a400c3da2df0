// The sanitizers' interfaces for memory that we manage and fibers that we switch; nothing without
// them. The simulator itself is never compiled with -fsanitize=thread, so CMake says
// CUDASIM_TSAN=1 where the program is.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#define CUDASIM_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CUDASIM_ASAN 1
#endif
#endif

#ifdef CUDASIM_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#include <sanitizer/lsan_interface.h>
#endif

#if CUDASIM_TSAN
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#endif

namespace cudasim {

#ifdef CUDASIM_ASAN
inline constexpr bool kAsan = true;
inline void forbid(const void* p, size_t bytes) { __asan_poison_memory_region(p, bytes); }
inline void permit(const void* p, size_t bytes) { __asan_unpoison_memory_region(p, bytes); }
#else
inline constexpr bool kAsan = false;
inline void forbid(const void*, size_t) {}
inline void permit(const void*, size_t) {}
#endif

// Happens-before between fibers: what precedes release(tag) on one precedes what follows
// acquire(tag) on another.
#if CUDASIM_TSAN
inline constexpr bool kTsan = true;
inline void acquire(void* tag) { __tsan_acquire(tag); }
inline void release(void* tag) { __tsan_release(tag); }
#else
inline constexpr bool kTsan = false;
inline void acquire(void*) {}
inline void release(void*) {}
#endif

}  // namespace cudasim
