// All-reduce between the ranks of one host through memory that they share (an MPI-3 shared window),
// so that a payload is copied once and read by its peers, instead of going through MPI's buffers.
//
// Each rank owns a segment: a counter and two buffers of one chunk. A payload goes chunk by chunk,
// the buffers in turn. Two ways, chosen by ranks and size alone, so that all ranks choose alike:
//   direct: write own part; meet; each rank adds up all parts into its x.
//   sliced: write own part; meet; each rank adds up its slice of the chunk in place; meet; each
//           rank copies all slices. Reads 2 instead of n chunks, for one more meeting.
// Ranks meet by raising their counter and waiting for the others'. A buffer is written again two
// chunks later; the meeting between says that its readers are done.
//
// Parts are added in rank order, in fp32 for F32 and BF16, rounded once: the same bits on every
// rank, whatever the timing.
#pragma once

#include <mpi.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/stream.h"
#include "kernels/tensor.h"

namespace lorashard {

// Whether a window of so many bytes can be made on this host, with as much left over. MPI
// implementations back it by a file in /dev/shm, and where that runs full, some hang in the
// allocation and others die at the first touch: ask before each window.
bool shared_memory_has_room(int64_t bytes);

class SharedAllReduce {
 public:
  SharedAllReduce() = default;
  // Frees the window (collective), unless an exception is unwinding. REQUIRES: MPI is not yet
  // finalized.
  ~SharedAllReduce();
  SharedAllReduce(const SharedAllReduce&) = delete;
  SharedAllReduce& operator=(const SharedAllReduce&) = delete;

  // All-reduce (sum) over `comm`, in place; x as in Communicator::all_reduce_sum. False, with x
  // as it was, on every rank, where there is no window: the ranks are of several hosts, or it could
  // not be made (one rank of the host says why on stderr, once). Collective; the first call makes
  // the window. REQUIRES: `comm` has the same ranks in the same order in every call.
  bool all_reduce(MPI_Comm comm, Stream& stream, Matrix x);

  // Communicator::reduce_scatter_sum and all_gather_slices; otherwise as all_reduce.
  bool reduce_scatter(MPI_Comm comm, Stream& stream, Matrix x);
  bool all_gather(MPI_Comm comm, Stream& stream, Matrix x);

  // The window exists.
  bool is_open() const { return state_ == State::Open; }

 private:
  enum class State { New, Open, Unusable };
  struct Segment {
    uint64_t* arrived;   // meetings that its rank has come to
    std::byte* data[2];  // one chunk each
  };

  void open(MPI_Comm comm);
  bool is_open_after_asking(MPI_Comm comm);
  void meet(MPI_Comm comm);
  void wait_for(MPI_Comm comm, uint64_t* arrived) const;

  State state_ = State::New;
  bool spin_ = false;  // there is a core for every rank of this host: a short wait need not yield
  MPI_Win window_ = MPI_WIN_NULL;
  int rank_ = 0;
  int64_t chunk_bytes_ = 0;
  std::vector<Segment> segments_;  // by rank
  std::vector<const void*> parts_;
  uint64_t meetings_ = 0;
  int turn_ = 0;  // which buffer comes next
};

}  // namespace lorashard
