#include "kernels/stream.h"

#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <string>
#include <utility>

#include "configs/error.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/profile.h"

namespace lorashard {
namespace {

// From this size on, memory comes in whole huge pages.
constexpr size_t kHugePage = size_t{2} << 20;

size_t rounded(size_t bytes) {
  const size_t unit = bytes >= kHugePage ? kHugePage : 4096;
  return (bytes + unit - 1) / unit * unit;
}

// Pages are zero and are not allocated before the first touch, which also places them.
void* map_zeroed(size_t bytes) {
  if (bytes == 0) return nullptr;
  const size_t size = rounded(bytes);
  if (size < bytes) fail_run("memory", "cannot allocate " + std::to_string(bytes) + " bytes");
  // Mapped with room to align to a huge page; what sticks out is returned.
  const size_t slack = size >= kHugePage ? kHugePage : 0;
  void* p = mmap(nullptr, size + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED)
    fail_run("memory", "cannot allocate " + std::to_string(bytes) + " bytes: " +
                           std::strerror(errno) + "; use less memory or a machine with more");
  if (slack) {
    char* base = static_cast<char*>(p);
    const size_t skip = (kHugePage - reinterpret_cast<uintptr_t>(base) % kHugePage) % kHugePage;
    if (skip) munmap(base, skip);
    if (skip < slack) munmap(base + skip + size, slack - skip);
    p = base + skip;
    madvise(p, size, MADV_HUGEPAGE);  // advice only: refusal does no harm
  }
  return p;
}

void unmap(void* p, size_t bytes) {
  if (p) munmap(p, rounded(bytes));
}

// Where a recording stream's memory lies: never touched.
alignas(64) char no_memory[64];

// Zeroed memory of the stream's device, and its end.
void* allocate([[maybe_unused]] Stream& stream, size_t bytes) {
  if (KernelRecord* record = stream.recorder()) {
    record->allocated += bytes;
    return no_memory;
  }
  LORASHARD_RETURN_ON_CUDA_WITH_SCRATCH(stream, allocate(stream, bytes));
  return map_zeroed(bytes);
}

void release([[maybe_unused]] Stream& stream, void* p, size_t bytes) {
  if (stream.recording()) return;
  LORASHARD_RETURN_ON_CUDA_WITH_SCRATCH(stream, release(stream, p));
  unmap(p, bytes);
}

int allowed_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1L, sysconf(_SC_NPROCESSORS_ONLN));
}

}  // namespace

bool built_with_cuda() {
#if LORASHARD_CUDA
  return true;
#else
  return false;
#endif
}

int cuda_devices() {
#if LORASHARD_CUDA
  return cuda::device_count();
#else
  return 0;
#endif
}

bool cuda_is_simulated() {
#ifdef LORASHARD_CUDA_SIM
  return true;
#else
  return false;
#endif
}

std::string cuda_device_name([[maybe_unused]] int device) {
#if LORASHARD_CUDA
  return cuda::device_name(device);
#else
  return "";
#endif
}

Stream::Stream(int threads) : threads_(threads > 0 ? threads : allowed_cpus()) {}

Stream::Stream(Backend backend, int threads, [[maybe_unused]] int device) : Stream(threads) {
  if (backend == Backend::CPU) return;
#if LORASHARD_CUDA
  cuda_ = cuda::create_stream(device);
#else
  fail_run("compute.backend", "this program was built without the CUDA backend");
#endif
}

Stream::Stream(KernelRecord& record) : threads_(1), record_(&record) {}

bool Stream::note(const char* kernel, const KernelWork& work) {
  const Profiler* profiler = Profiler::current();
  const ProfileSpan* span = profiler ? profiler->innermost : nullptr;
  record_->calls.push_back({kernel, span ? span->path() : "", work});
  return true;
}

Stream::~Stream() {
  for (const Scratch& s : scratch_) release(*this, s.memory, s.bytes);
#if LORASHARD_CUDA
  if (cuda_) cuda::destroy_stream(cuda_);
#endif
}

size_t Stream::available_bytes() const {
#if LORASHARD_CUDA
  if (cuda_) return cuda::available_bytes(*cuda_);
#endif
  return 0;
}

void Stream::synchronize() { LORASHARD_RETURN_ON_CUDA_WITH_SCRATCH(*this, synchronize(*this)); }

void* Stream::scratch(ScratchSlot slot, size_t bytes) {
  Scratch& s = scratch_[size_t(slot)];
  if (reserving_) {
    s.wanted = std::max(s.wanted, bytes);
    return s.memory;
  }
  if (bytes > s.bytes) {
    // Doubling keeps a slowly growing user from mapping anew at every call. What is recorded is
    // what reserve_for() would allocate.
    const size_t size =
        recording() ? bytes : std::max(bytes, std::min(2 * s.bytes, size_t{64} << 20));
    release(*this, std::exchange(s.memory, nullptr), std::exchange(s.bytes, 0));
    s.memory = allocate(*this, size);
    s.bytes = size;
  }
  return s.memory;
}

void Stream::reserve_for(const std::function<void()>& work) {
  if (backend() == Backend::CPU) return;
  struct Reserving {
    bool& flag;
    ~Reserving() { flag = false; }
  };
  {
    const Reserving guard{reserving_ = true};
    work();
  }
  for (size_t i = 0; i < std::size(scratch_); ++i) {
    if (scratch_[i].wanted == 0) continue;
    (void)scratch(ScratchSlot(i), std::exchange(scratch_[i].wanted, 0));
    scratch_[i].reserved = true;
  }
}

size_t Stream::scratch_bytes() const {
  size_t bytes = 0;
  for (const Scratch& s : scratch_) bytes += s.bytes;
  return bytes;
}

size_t Stream::reserved_bytes(ScratchSlot slot) const {
  const Scratch& s = scratch_[size_t(slot)];
  return s.reserved && !reserving_ ? s.bytes : SIZE_MAX;
}

Buffer::Buffer(Stream& stream, size_t bytes)
    : data_(allocate(stream, bytes)),
      bytes_(bytes),
      stream_(stream.backend() == Backend::CUDA || stream.recording() ? &stream : nullptr) {}

Buffer::~Buffer() {
  if (stream_) {
    release(*stream_, data_, bytes_);
  } else {
    unmap(data_, bytes_);  // the stream may be gone
  }
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      stream_(std::exchange(other.stream_, nullptr)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(stream_, other.stream_);
  return *this;
}

}  // namespace lorashard
