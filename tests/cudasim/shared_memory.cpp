#include <cudasim/block.h>
#include <cudasim/sanitizers.h>
#include <sys/mman.h>

#include <cstdlib>

namespace cudasim {
namespace {

constexpr size_t kGap = 64;  // behind every array
constexpr size_t kReserved = size_t{256} << 10;
constexpr uint64_t kEmpty = ~uint64_t{0}, kGuard = 0xfbfbfbfbfbfbfbfb;

// By words and volatile: memset is seen by ThreadSanitizer, and this runs on fibers too.
void fill(unsigned char* p, size_t bytes, uint64_t pattern) {
  auto* words = reinterpret_cast<volatile uint64_t*>(p);
  for (size_t i = 0; i < bytes / 8; ++i) words[i] = pattern;
}

bool intact(const unsigned char* p, size_t bytes) {
  const auto* words = reinterpret_cast<const uint64_t*>(p);
  for (size_t i = 0; i < bytes / 8; ++i)
    if (words[i] != kGuard) return false;
  return true;
}

size_t rounded(size_t bytes) { return (bytes + 15) / 16 * 16; }

unsigned char* reserve() {
  void* p = mmap(nullptr, kReserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) std::abort();
  return static_cast<unsigned char*>(p);
}

}  // namespace

SharedMemory::SharedMemory() : static_(reserve()), dynamic_(reserve()) {}

SharedMemory::~SharedMemory() {
  for (unsigned char* p : {static_, dynamic_}) {
    permit(p, kReserved);
    munmap(p, kReserved);
  }
}

void SharedMemory::begin_grid(size_t dynamic_bytes) {
  arrays_.clear();
  arrays_.reserve(64);
  used_ = 0;
  dynamic_bytes_ = dynamic_bytes;
  permit(dynamic_, kReserved);
  fill(dynamic_ + rounded(dynamic_bytes), kGap, kGuard);
  forbid(dynamic_ + dynamic_bytes, kReserved - dynamic_bytes);
  forbid(static_, kReserved);
}

void SharedMemory::begin_block() {
  fill(dynamic_, dynamic_bytes_ / 8 * 8, kEmpty);
  for (const Array& a : arrays_) fill(static_ + a.offset, a.bytes / 8 * 8, kEmpty);
}

bool SharedMemory::overrun() const {
  if (kAsan) return false;  // met at the access itself
  if (!intact(dynamic_ + rounded(dynamic_bytes_), kGap)) return true;
  for (const Array& a : arrays_)
    if (!intact(static_ + a.offset + rounded(a.bytes), kGap)) return true;
  return false;
}

void* SharedMemory::array(const void* declaration, size_t bytes) {
  for (const Array& a : arrays_)
    if (a.declaration == declaration) return static_ + a.offset;
  size_t all = bytes;
  for (const Array& a : arrays_) all += a.bytes;
  if (all > kMostStaticShared || used_ + rounded(bytes) + kGap > kReserved) return nullptr;
  const Array made{declaration, used_, bytes};
  permit(static_ + used_, rounded(bytes) + kGap);
  fill(static_ + used_, rounded(bytes), kEmpty);
  fill(static_ + used_ + rounded(bytes), kGap, kGuard);
  forbid(static_ + used_ + bytes, rounded(bytes) + kGap - bytes);
  used_ += rounded(bytes) + kGap;
  arrays_.push_back(made);
  return static_ + made.offset;
}

}  // namespace cudasim
