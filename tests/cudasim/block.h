// One block of a grid, run by one OS thread: its threads on fibers, its barriers, warp exchanges
// and shared memory.
#pragma once

#include <cudasim/device_language.h>
#include <cudasim/fiber.h>

#include <memory>
#include <string>
#include <vector>

namespace cudasim {

// A kernel as it was launched.
struct Launch {
  dim3 grid, block;
  size_t shared_bytes = 0;
  Site site;
  std::shared_ptr<const void> call;
  void (*body)(const void* call) = nullptr;
};
// "kernel launched at FILE:LINE"
std::string describe(const Launch& launch);

// Limits that sm_80, sm_90 and sm_100 share, but for the shared memory of a block, which is that of
// sm_90 and sm_100 (sm_80: 163 KiB).
inline constexpr unsigned kMostThreads = 1024, kMostGridYZ = 65535;
inline constexpr size_t kMostStaticShared = size_t{48} << 10, kMostShared = size_t{227} << 10;

enum ThreadState : uint8_t { kReady, kAtBarrier, kInExchange, kExited };

// A meeting of the lanes of one mask. Two sets of slots in turn: lanes still read one while others
// fill the next.
struct Rendezvous {
  uint32_t mask = 0, arrived = 0;
  uint8_t turn = 0;
  Site site;
  uint32_t given[2] = {};
  uint32_t words[2][32][Exchange::kMostWords];
};

struct Warp {
  static constexpr int kMasks = 4;  // masks in use at one time
  Rendezvous meetings[kMasks];
};

// Shared memory of a block: static arrays by declaration, and the dynamic part. All bytes are 0xFF
// at first (NaN in every float type); gaps between arrays are checked when the block ends.
class SharedMemory {
 public:
  SharedMemory();
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  // Before the first block of a grid, with the dynamic bytes; before each block; after each.
  void begin_grid(size_t dynamic_bytes);
  void begin_block();
  // True if something was written past an array.
  bool overrun() const;
  void* array(const void* declaration, size_t bytes);  // null if more than a block can have
  void* dynamic() const { return dynamic_; }

 private:
  struct Array {
    const void* declaration;
    size_t offset, bytes;
  };
  unsigned char* static_;
  unsigned char* dynamic_;
  size_t dynamic_bytes_ = 0, used_ = 0;
  std::vector<Array> arrays_;
};

class BlockRunner {
 public:
  // The runner of this OS thread.
  static BlockRunner& mine();
  // Null outside a kernel.
  static BlockRunner* active();

  // Runs every block of the grid. Throws Violation.
  void run(const Launch& launch);

  void barrier(Site site);
  Exchange exchange(uint32_t mask, const uint32_t* words, int count, Site site);
  void* shared_array(const void* declaration, size_t bytes);
  void* dynamic_shared() const { return shared_.dynamic(); }
  // Ends the block with a violation. Called on a fiber, which never continues.
  [[noreturn]] void fail(const std::string& what);

 private:
  void prepare(const Launch& launch);
  void run_block(uint3 index);
  static void fiber_entry(Fiber& me);
  void run_threads(Fiber& me);
  void leave_thread(SimThread& thread);
  void continue_next();
  void make_ready(SimThread& thread);
  Fiber* take_ready();
  Fiber* fresh_fiber();
  Rendezvous& meeting_of(Warp& warp, uint32_t mask);
  uint32_t existing_lanes(unsigned warp) const;
  std::string stuck() const;
  std::string name(const SimThread& thread) const;

  const Launch* launch_ = nullptr;
  std::vector<SimThread> threads_;
  std::vector<std::unique_ptr<Warp>> warps_;
  std::vector<unsigned> order_;  // in which the threads start
  SharedMemory shared_;
  std::vector<Fiber*> idle_;
  // A ring of the fibers that can go on.
  static constexpr unsigned kRing = 2 * kMostThreads;
  Fiber* ready_[kRing];
  unsigned first_ready_ = 0, end_ready_ = 0;
  unsigned started_ = 0, live_ = 0, at_barrier_ = 0;
  uint8_t barrier_turn_ = 0;
  bool failed_ = false;
  std::string failure_;
  // Tags for ThreadSanitizer. An arrival at a barrier must not order what another thread does
  // before it arrives there, so start, end and each barrier in turn have their own.
  char start_tag_ = 0, end_tag_ = 0, barrier_tags_[2] = {};
};

}  // namespace cudasim
