// cp.async of a simulated thread, for kernels/cuda/mma.h: a copy happens when its group is waited
// for, and its target holds NaN until then.
#pragma once

#include <cudasim/device_language.h>

#include <memory>

namespace cudasim {

class AsyncCopies {
 public:
  // False if 16 bytes are not aligned, or if there is no room for another copy.
  bool add(void* to, const void* from, bool real) {
    if (count_ == kMost || (uintptr_t(to) | uintptr_t(from)) % 16) return false;
    copies_[count_++] = {static_cast<Bytes*>(to), static_cast<const Bytes*>(from), group_, real};
    *static_cast<Bytes*>(to) = {~uint64_t{0}, ~uint64_t{0}};
    return true;
  }
  void commit() { ++group_; }
  // Does the copies of all groups but the `newest`.
  void wait(int newest) {
    int kept = 0;
    for (int i = 0; i < count_; ++i) {
      const Copy& c = copies_[i];
      if (c.group >= group_ - newest)
        copies_[kept++] = c;
      else
        *c.to = c.real ? *c.from : Bytes{};
    }
    count_ = kept;
  }
  // Copies of another block, which ended without waiting for them, never happen.
  void enter(uint3 block) {
    if (block.x == block_.x && block.y == block_.y && block.z == block_.z) return;
    block_ = block;
    count_ = 0;
  }

 private:
  static constexpr int kMost = 256;
  struct Bytes {
    uint64_t low, high;
  };
  struct Copy {
    Bytes* to;
    const Bytes* from;
    int group;
    bool real;
  };
  Copy copies_[kMost];
  int count_ = 0, group_ = 0;
  uint3 block_{};
};

// Of the thread that runs. Not instrumented for ThreadSanitizer: the guard of the table's
// initialisation, which the threads of a block share, is no memory of theirs.
__attribute__((no_sanitize("thread"), noinline)) inline AsyncCopies& async_copies() {
  static thread_local std::unique_ptr<AsyncCopies> of_thread[1024];
  auto& copies = of_thread[current_thread->number];
  if (!copies) copies = std::make_unique<AsyncCopies>();
  copies->enter(current_thread->block_index);
  return *copies;
}

}  // namespace cudasim
