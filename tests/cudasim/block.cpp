#include <cudasim/block.h>
#include <cudasim/sanitizers.h>
#include <cudasim/settings.h>
#include <cudasim/violation.h>

#include <utility>

namespace cudasim {
namespace {

constinit thread_local BlockRunner* active_runner = nullptr;

std::string text(Site site) {
  return site.file ? std::string(" at ") + site.file + ":" + std::to_string(site.line) : "";
}

}  // namespace

std::string describe(const Launch& launch) { return "kernel launched" + text(launch.site); }

BlockRunner& BlockRunner::mine() {
  thread_local BlockRunner runner;
  return runner;
}

BlockRunner* BlockRunner::active() { return active_runner; }

std::string BlockRunner::name(const SimThread& thread) const {
  const uint3 b = thread.block_index;
  return "block (" + std::to_string(b.x) + "," + std::to_string(b.y) + "," + std::to_string(b.z) +
         ") thread " + std::to_string(thread.number) + text(thread.site);
}

void BlockRunner::run(const Launch& launch) {
  prepare(launch);
  const dim3 g = launch.grid;
  const uint64_t blocks = uint64_t{g.x} * g.y * g.z;
  for (uint64_t i = 0; i < blocks; ++i) {
    const uint64_t k = settings().reverse_blocks ? blocks - 1 - i : i;
    run_block({unsigned(k % g.x), unsigned(k / g.x % g.y), unsigned(k / g.x / g.y)});
    if (!failed_ && shared_.overrun()) {
      failed_ = true;
      failure_ = "a write past the end of shared memory by block " + std::to_string(k);
    }
    if (failed_) throw Violation(failure_ + " [" + describe(launch) + "]");
  }
}

void BlockRunner::prepare(const Launch& launch) {
  const dim3 size = launch.block;
  const unsigned n = size.x * size.y * size.z;
  launch_ = &launch;
  threads_.resize(n);
  while (warps_.size() < (n + 31) / 32) warps_.push_back(std::make_unique<Warp>());
  unsigned i = 0;
  for (unsigned z = 0; z < size.z; ++z)
    for (unsigned y = 0; y < size.y; ++y)
      for (unsigned x = 0; x < size.x; ++x, ++i)
        threads_[i] = {{x, y, z}, {}, size, launch.grid, i, i % 32, i / 32, kReady, nullptr, {}};
  order_.resize(n);
  for (i = 0; i < n; ++i) order_[i] = settings().threads == Order::REVERSE ? n - 1 - i : i;
  shared_.begin_grid(launch.shared_bytes);
  home_fiber();
  // Nothing may grow while fibers run: ThreadSanitizer would see it as their own writes. Making a
  // fiber orders it after its maker, so they are all made here.
  idle_.reserve(2 * kMostThreads);
  if (kTsan)
    while (idle_.size() < n) idle_.push_back(make_fiber(fiber_entry));
}

void BlockRunner::run_block(uint3 index) {
  if (settings().threads == Order::RANDOM)
    for (size_t i = order_.size(); i > 1; --i) std::swap(order_[i - 1], order_[next_random() % i]);
  for (SimThread& t : threads_) {
    t.block_index = index;
    t.state = kReady;
    t.site = {};
  }
  for (auto& warp : warps_)
    for (Rendezvous& meeting : warp->meetings) meeting.mask = meeting.arrived = 0;
  shared_.begin_block();
  first_ready_ = end_ready_ = started_ = at_barrier_ = 0;
  live_ = unsigned(threads_.size());
  failed_ = false;
  active_runner = this;
  release(&start_tag_);
  while (!failed_ && live_ > 0) {
    if (started_ == threads_.size() && first_ready_ == end_ready_) {
      failed_ = true;
      failure_ = stuck();
    } else {
      continue_next();
    }
  }
  acquire(&end_tag_);
  active_runner = nullptr;
  home_fiber().thread = nullptr;
}

std::string BlockRunner::stuck() const {
  for (const SimThread& t : threads_) {
    if (t.state == kAtBarrier)
      return "__syncthreads that not all threads of the block reach: " + name(t) + " waits, " +
             std::to_string(threads_.size() - at_barrier_) + " threads never come";
    if (t.state == kInExchange)
      return "warp collective that not all lanes of its mask reach: " + name(t) + " waits";
  }
  return "deadlock";
}

void BlockRunner::fiber_entry(Fiber& me) { mine().run_threads(me); }

// A fiber runs one thread after another until one of them blocks: kernels without barriers run as a
// loop. For ThreadSanitizer each thread of a block has a fiber of its own.
void BlockRunner::run_threads(Fiber& me) {
  for (;;) {
    while (!failed_ && started_ < threads_.size()) {
      SimThread& thread = threads_[order_[started_++]];
      thread.fiber = &me;
      me.thread = current_thread = &thread;
      acquire(&start_tag_);
      launch_->body(launch_->call.get());
      release(&end_tag_);
      leave_thread(thread);
      if (kTsan) break;
    }
    idle_.push_back(&me);
    continue_next();
  }
}

void BlockRunner::leave_thread(SimThread& thread) {
  thread.state = kExited;
  --live_;
  if (failed_) return;
  if (at_barrier_ > 0) {
    failed_ = true;
    failure_ = "a thread exited while others wait at __syncthreads: " + name(thread);
    for (const SimThread& t : threads_)
      if (t.state == kAtBarrier) {
        failure_ += "; waiting: " + name(t);
        break;
      }
  }
  for (const Rendezvous& meeting : warps_[thread.warp]->meetings)
    if (!failed_ && meeting.arrived && meeting.mask >> thread.lane & 1u) {
      failed_ = true;
      failure_ = "a lane exited that a warp collective" + text(meeting.site) +
                 " waits for: " + name(thread);
    }
}

Fiber* BlockRunner::fresh_fiber() {
  if (idle_.empty()) return make_fiber(fiber_entry);
  Fiber* fiber = idle_.back();
  idle_.pop_back();
  return fiber;
}

// Leaves the running fiber for the next that can go on; home when there is none. What waits goes
// before what has not started.
void BlockRunner::continue_next() {
  Fiber* to = &home_fiber();
  if (!failed_) {
    if (first_ready_ != end_ready_)
      to = take_ready();
    else if (started_ < threads_.size())
      to = fresh_fiber();
  }
  if (to != &running_fiber()) switch_to(*to);
}

void BlockRunner::make_ready(SimThread& thread) {
  thread.state = kReady;
  ready_[end_ready_++ % kRing] = static_cast<Fiber*>(thread.fiber);
}

Fiber* BlockRunner::take_ready() {
  switch (settings().threads) {
    case Order::REVERSE:
      return ready_[--end_ready_ % kRing];
    case Order::RANDOM: {
      const unsigned pick = first_ready_ + unsigned(next_random() % (end_ready_ - first_ready_));
      std::swap(ready_[first_ready_ % kRing], ready_[pick % kRing]);
      break;
    }
    case Order::FORWARD:
      break;
  }
  return ready_[first_ready_++ % kRing];
}

void BlockRunner::fail(const std::string& what) {
  failed_ = true;
  failure_ = what + ": " + name(*current_thread);
  continue_next();
  __builtin_unreachable();  // nobody continues a fiber of a failed block
}

void BlockRunner::barrier(Site site) {
  SimThread& me = *current_thread;
  me.site = site;
  void* const tag = &barrier_tags_[barrier_turn_];
  release(tag);
  me.state = kAtBarrier;
  if (++at_barrier_ < threads_.size()) {
    continue_next();
  } else {
    at_barrier_ = 0;
    barrier_turn_ ^= 1;
    for (const SimThread& t : threads_)
      if (!(t.site == site)) fail("threads at different __syncthreads: " + name(t));
    const bool goes_on = settings().threads == Order::FORWARD;
    for (SimThread& t : threads_)
      if (&t != &me || !goes_on) make_ready(t);
    me.state = kReady;
    if (!goes_on) continue_next();
  }
  acquire(tag);
}

void* BlockRunner::shared_array(const void* declaration, size_t bytes) {
  void* memory = shared_.array(declaration, bytes);
  if (!memory) fail("more than 48 KiB of static shared memory");
  return memory;
}

void block_barrier(Site site) {
  BlockRunner* runner = BlockRunner::active();
  if (!runner) throw Violation("__syncthreads outside a kernel");
  runner->barrier(site);
}

void* shared_array(const void* declaration, size_t bytes) {
  return BlockRunner::active()->shared_array(declaration, bytes);
}

void* dynamic_shared() { return BlockRunner::active()->dynamic_shared(); }

void trap(const char* what, Site site) {
  current_thread->site = site;
  BlockRunner::active()->fail(what);
}

}  // namespace cudasim
