// Where the ranks of one simulated NCCL communicator meet: POSIX shared memory named by the unique
// id. Ranks may be processes or threads of one.
//
// An all-reduce goes piece by piece. Of piece number s each rank first writes its part (it may once
// every rank has read piece s - 1) and then, when all have written theirs, adds the parts up in
// rank order: all ranks get the same bits.
#pragma once

#include <nccl.h>
#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

namespace cudasim {

class NcclSegment {
 public:
  static constexpr size_t kPieceBytes = size_t{64} << 10;

  struct Part {
    std::atomic<uint64_t> written, read;  // pieces
    std::atomic<pid_t> process;           // 0 until the rank joined
    uint64_t count, done;                 // of the collective, and elements before this piece
    int32_t type;
    alignas(64) unsigned char bytes[kPieceBytes];
  };

  NcclSegment(const std::string& name, int rank, int size);
  ~NcclSegment();
  NcclSegment(const NcclSegment&) = delete;
  NcclSegment& operator=(const NcclSegment&) = delete;

  // False if the ranks disagree about their number.
  bool fits() const;
  bool all_joined() const;
  // A rank aborted, or its process is gone.
  bool peer_lost() const;
  void say_aborted();
  Part& part(int rank) { return parts_[rank]; }
  const Part& part(int rank) const { return parts_[rank]; }

 private:
  struct Head {
    std::atomic<int> size, joined, aborted;
  };
  std::string name_;
  int rank_, size_;
  size_t bytes_ = 0;
  Head* head_ = nullptr;
  Part* parts_ = nullptr;
  bool fits_ = true, aborted_here_ = false;
};

}  // namespace cudasim
