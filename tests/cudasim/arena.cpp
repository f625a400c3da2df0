#include <cudasim/arena.h>
#include <cudasim/sanitizers.h>
#include <cudasim/settings.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>

namespace cudasim {
namespace {

constexpr size_t kReserved = size_t{256} << 30;
constexpr size_t kHuge = size_t{2} << 20;  // the arena grows by whole huge pages: cheap to protect
constexpr size_t kAlign = 256, kGuard = 256, kPage = 4096;
constexpr int kEmpty = 0xff, kGuardByte = 0xfb;
// Freed memory is kept as it is, up to this much; older goes back to the system.
constexpr size_t kKept = size_t{64} << 20;
constexpr size_t kReuse = size_t{32} << 20;

struct Allocation {
  size_t bytes;
  int device;
};

struct Freed {
  char* p;
  size_t bytes;
};

struct Arena {
  std::mutex mutex;
  char* base = nullptr;
  size_t top = 0, mapped = 0;  // bytes handed out; bytes that can be made readable
  int open = 0;
  std::map<char*, Allocation> live;
  std::deque<Freed> freed;
  size_t freed_bytes = 0;
  std::map<int, size_t> used;

  Arena() {
    void* p = mmap(nullptr, kReserved + kHuge, PROT_NONE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
      std::perror("cudasim: cannot reserve device memory");
      std::abort();
    }
    base = static_cast<char*>(p);
    base += (kHuge - reinterpret_cast<uintptr_t>(base) % kHuge) % kHuge;
    madvise(base, kReserved, MADV_HUGEPAGE);
  }

  void protect(bool reachable) const {
    if (mapped == 0) return;
    mprotect(base, mapped, reachable || !settings().guard ? PROT_READ | PROT_WRITE : PROT_NONE);
  }
  // With nothing allocated, memory starts again at the base, so that what is toggled at each drain
  // stays small in a program that opens and closes many streams.
  void begin_anew() {
    if (mapped < kReuse) return;
    mmap(base, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    madvise(base, mapped, MADV_HUGEPAGE);
    permit(base, mapped);
    top = mapped = freed_bytes = 0;
    freed.clear();
  }
  void enter() {
    if (open++ == 0) protect(true);
  }
  void leave() {
    if (--open == 0) protect(false);
  }
};

Arena& arena() {
  static Arena* a = new Arena;  // outlives every static that frees device memory
  return *a;
}

bool all_bytes(const char* p, size_t n, int value) {
  for (size_t i = 0; i < n; ++i)
    if (static_cast<unsigned char>(p[i]) != value) return false;
  return true;
}

}  // namespace

ArenaAccess::ArenaAccess() {
  const std::lock_guard lock(arena().mutex);
  arena().enter();
}

ArenaAccess::~ArenaAccess() {
  const std::lock_guard lock(arena().mutex);
  arena().leave();
}

void* arena_allocate(size_t bytes, int device) {
  Arena& a = arena();
  const std::lock_guard lock(a.mutex);
  const size_t size = (bytes + kAlign - 1) / kAlign * kAlign + 2 * kGuard;
  if (bytes > settings().memory_bytes || a.used[device] + bytes > settings().memory_bytes ||
      a.top + size > kReserved)
    return nullptr;
  char* begin = a.base + a.top;
  a.top += size;
  if (a.top > a.mapped) {
    const size_t mapped = (a.top + kHuge - 1) / kHuge * kHuge;
    if (a.open > 0 || !settings().guard)
      mprotect(a.base + a.mapped, mapped - a.mapped, PROT_READ | PROT_WRITE);
    a.mapped = mapped;
  }
  a.enter();
  std::memset(begin, kGuardByte, kGuard);
  std::memset(begin + kGuard, kEmpty, bytes);
  std::memset(begin + kGuard + bytes, kGuardByte, size - kGuard - bytes);
  forbid(begin, size);
  permit(begin + kGuard, bytes);
  a.leave();
  a.live[begin + kGuard] = {bytes, device};
  a.used[device] += bytes;
  return begin + kGuard;
}

bool arena_release(void* p) {
  Arena& a = arena();
  const std::lock_guard lock(a.mutex);
  const auto found = a.live.find(static_cast<char*>(p));
  if (found == a.live.end()) return false;
  const auto [bytes, device] = found->second;
  a.live.erase(found);
  a.used[device] -= bytes;
  a.enter();
  if (bytes <= kKept) {
    std::memset(p, kEmpty, bytes);
    a.freed.push_back({static_cast<char*>(p), bytes});
    a.freed_bytes += bytes;
  }
  const auto give_back = [](char* from, size_t n) {
    const auto first = (reinterpret_cast<uintptr_t>(from) + kPage - 1) / kPage * kPage;
    const auto last = (reinterpret_cast<uintptr_t>(from) + n) / kPage * kPage;
    if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
  };
  if (bytes > kKept) give_back(static_cast<char*>(p), bytes);
  while (a.freed_bytes > kKept) {
    const Freed oldest = a.freed.front();
    a.freed.pop_front();
    a.freed_bytes -= oldest.bytes;
    give_back(oldest.p, oldest.bytes);
  }
  forbid(p, bytes);
  a.leave();
  if (a.live.empty() && a.open == 0) a.begin_anew();
  return true;
}

bool arena_owns(const void* p) {
  Arena& a = arena();
  const auto* q = static_cast<const char*>(p);
  return q >= a.base && q < a.base + kReserved;
}

bool arena_holds(const void* p, size_t bytes) {
  Arena& a = arena();
  const std::lock_guard lock(a.mutex);
  auto* q = static_cast<char*>(const_cast<void*>(p));
  auto next = a.live.upper_bound(q);
  if (next == a.live.begin()) return false;
  const auto& [start, allocation] = *--next;
  return q >= start && size_t(q - start) <= allocation.bytes &&
         bytes <= allocation.bytes - size_t(q - start);
}

size_t arena_used(int device) {
  Arena& a = arena();
  const std::lock_guard lock(a.mutex);
  return a.used[device];
}

std::string arena_damage() {
  if (kAsan) return {};  // met at the access itself
  Arena& a = arena();
  const std::lock_guard lock(a.mutex);
  for (const auto& [p, allocation] : a.live) {
    const size_t bytes = allocation.bytes;
    const size_t behind = (bytes + kAlign - 1) / kAlign * kAlign - bytes + kGuard;
    const char* side = !all_bytes(p - kGuard, kGuard, kGuardByte)  ? "before"
                       : !all_bytes(p + bytes, behind, kGuardByte) ? "behind"
                                                                   : nullptr;
    if (!side) continue;
    std::memset(p - kGuard, kGuardByte, kGuard);
    std::memset(p + bytes, kGuardByte, behind);
    return "a write just " + std::string(side) + " a device allocation of " +
           std::to_string(bytes) + " bytes";
  }
  // Of freed memory the newest, at its beginning: all of it at every drain would take too long.
  int looked = 0;
  for (auto f = a.freed.rbegin(); f != a.freed.rend() && looked < 64; ++f, ++looked) {
    const size_t looked_at = std::min(f->bytes, size_t{1024});
    if (all_bytes(f->p, looked_at, kEmpty)) continue;
    std::memset(f->p, kEmpty, looked_at);
    return "a write to freed device memory (" + std::to_string(f->bytes) + " bytes)";
  }
  return {};
}

}  // namespace cudasim
