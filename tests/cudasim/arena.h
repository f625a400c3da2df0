// Device memory: one reserved range of addresses, out of the host's reach but while a stream runs.
//
// Every allocation is filled with 0xFF (NaN in every float type) and has guard bytes on both sides.
// Addresses are not used twice, so that a pointer into freed memory never meets a new allocation:
// freed memory is all 0xFF again, and what is written there is noticed.
#pragma once

#include <cstddef>
#include <string>

namespace cudasim {

// Null if the device has no more.
void* arena_allocate(size_t bytes, int device);
// False if `p` is not the start of an allocation.
bool arena_release(void* p);
// True if [p, p + bytes) lies within one allocation.
bool arena_holds(const void* p, size_t bytes);
// True if p is an address of device memory, allocated or not.
bool arena_owns(const void* p);
size_t arena_used(int device);
// What was written outside of every allocation, or nothing. REQUIRES: an ArenaAccess lives.
std::string arena_damage();

// While one lives, device memory can be reached.
class ArenaAccess {
 public:
  ArenaAccess();
  ~ArenaAccess();
  ArenaAccess(const ArenaAccess&) = delete;
  ArenaAccess& operator=(const ArenaAccess&) = delete;
};

}  // namespace cudasim
