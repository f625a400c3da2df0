#include <cudasim/nccl_segment.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>

namespace cudasim {

namespace {
constexpr size_t kHeadBytes = 4096;
}

// Whoever comes first makes the memory, which is zero: every rank asks for the same size.
NcclSegment::NcclSegment(const std::string& name, int rank, int size)
    : name_(name), rank_(rank), size_(size), bytes_(kHeadBytes + size_t(size) * sizeof(Part)) {
  const int file = shm_open(name.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600);
  void* memory = MAP_FAILED;
  if (file >= 0 && ftruncate(file, off_t(bytes_)) == 0)
    memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (memory == MAP_FAILED) {
    std::perror("cudasim: shared memory of a communicator");
    std::abort();
  }
  close(file);
  head_ = static_cast<Head*>(memory);
  parts_ = reinterpret_cast<Part*>(static_cast<char*>(memory) + kHeadBytes);
  int none = 0;
  fits_ = head_->size.compare_exchange_strong(none, size) || none == size;
  if (!fits_) return;
  parts_[rank].process = getpid();
  // Nobody opens it by name once all are there.
  if (head_->joined.fetch_add(1) + 1 == size) shm_unlink(name.c_str());
}

NcclSegment::~NcclSegment() {
  if (!all_joined()) shm_unlink(name_.c_str());
  if (fits_ && !aborted_here_) parts_[rank_].process = 0;  // left in order
  munmap(head_, bytes_);
}

bool NcclSegment::fits() const { return fits_; }
bool NcclSegment::all_joined() const { return head_->joined == size_; }

bool NcclSegment::peer_lost() const {
  if (aborted_here_) return false;
  if (head_->aborted) return true;
  for (int r = 0; r < size_; ++r) {
    const pid_t process = parts_[r].process;
    if (r != rank_ && process != 0 && kill(process, 0) != 0 && errno == ESRCH) return true;
  }
  return false;
}

void NcclSegment::say_aborted() {
  aborted_here_ = true;
  head_->aborted = 1;
}

}  // namespace cudasim
