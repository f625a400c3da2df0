// The collectives that lorashard needs, behind one small interface. Implementations: one rank
// alone, ranks as threads (tests), MPI, and NCCL for all-reduces of CUDA memory.
//
// All calls are collective and blocking on the CPU; every rank calls in the same order. Results are
// bitwise identical on every rank. A failing peer ends the job (MPI's error handler is fatal after
// the message is printed), so no call returns with a partial result.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/stream.h"
#include "kernels/tensor.h"

namespace lorashard {

// One entry per call, for tests and for `output.trace_collectives`.
struct CollectiveCall {
  std::string operation;  // "all_reduce", "reduce_scatter", "all_gather", "broadcast", "barrier"
  std::string label;  // what was moved, for example "lora_gradient" or "layer.3.attention.forward"
  int64_t bytes = 0;  // payload of this rank
};

// An all-reduce under way; 0: it is done.
using ReduceTicket = int64_t;

class Communicator {
 public:
  virtual ~Communicator() = default;

  int rank() const { return rank_; }
  int size() const { return size_; }
  // A number that the ranks of this rank's host share with none of another host.
  virtual int host() const { return 0; }
  // This rank's number in the whole job.
  virtual int world_rank() const { return rank_; }
  // This rank for messages: "rank 3 on host node2", by its rank in the whole job.
  virtual std::string place() const { return "rank " + std::to_string(rank_); }

  // All-reduce (sum) of x in place. x: contiguous, F32, BF16 (summed in fp32, rounded once; by
  // MPI's messages each partial sum is rounded), F64, I64.
  // On CUDA (device memory, NCCL) it is enqueued and comes before what is enqueued on the stream
  // later.
  void all_reduce_sum(Stream& stream, Matrix x, const char* label);
  // all_reduce_sum in two halves: what is enqueued on the stream between them overlaps it, where
  // the implementation can, and must leave x alone. Several all-reduces may be under way.
  ReduceTicket all_reduce_sum_begin(Stream& stream, Matrix x, const char* label);
  void all_reduce_sum_wait(Stream& stream, ReduceTicket ticket);
  // Of x(1,n), cut in size() equal slices of which slice r is rank r's. x: as of all_reduce_sum,
  // F32 or BF16; n is a multiple of size(). This rank's slice becomes the sum over the ranks; the
  // others are left undefined.
  void reduce_scatter_sum(Stream& stream, Matrix x, const char* label);
  // Every slice becomes what its rank has there.
  void all_gather_slices(Stream& stream, Matrix x, const char* label);
  Matrix slice(Matrix x) const { return x.col_range(x.cols / size_ * rank_, x.cols / size_); }
  // Host memory: receive = the ranks' `bytes` bytes, one after the other in rank order.
  void all_gather(const void* send, void* receive, int64_t bytes, const char* label);
  // Host memory: data of rank `root` to all.
  void broadcast(void* data, int64_t bytes, int root, const char* label);
  void barrier(const char* label);
  // Ranks of equal color form a new communicator, ordered by their rank here. Collective.
  virtual std::unique_ptr<Communicator> split(int color) = 0;
  // Ends every rank of the whole job with this exit status.
  [[noreturn]] virtual void abort(int exit_status) = 0;

  // Appends each call to `trace` from now on; null stops. The trace outlives the communicator.
  void set_trace(std::vector<CollectiveCall>* trace) { trace_ = trace; }

 protected:
  Communicator(int rank, int size) : rank_(rank), size_(size) {}
  // The bodies; called only when size() > 1.
  virtual void do_all_reduce_sum(Stream& stream, Matrix x) = 0;
  // Where they are not overridden, the all-reduce is done when begin returns.
  virtual ReduceTicket do_all_reduce_sum_begin(Stream& stream, Matrix x) {
    do_all_reduce_sum(stream, x);
    return 0;
  }
  virtual void do_all_reduce_sum_wait(Stream&, ReduceTicket) {}
  // Where they are not overridden, an all-reduce does it.
  virtual void do_reduce_scatter_sum(Stream& stream, Matrix x) { do_all_reduce_sum(stream, x); }
  virtual void do_all_gather_slices(Stream& stream, Matrix x);
  virtual void do_all_gather(const void* send, void* receive, int64_t bytes) = 0;
  virtual void do_broadcast(void* data, int64_t bytes, int root) = 0;
  virtual void do_barrier() = 0;
  // Of the call that runs.
  const char* label() const { return label_; }

 private:
  void record(const char* operation, const char* label, int64_t bytes);
  int rank_, size_;
  const char* label_ = "";
  std::vector<CollectiveCall>* trace_ = nullptr;
};

// One rank alone.
std::unique_ptr<Communicator> make_self_communicator();

}  // namespace lorashard
