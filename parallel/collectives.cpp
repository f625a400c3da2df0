#include "parallel/collectives.h"

#include <cassert>
#include <cstring>

#include "kernels/elementwise.h"
#include "kernels/profile.h"

namespace lorashard {

void Communicator::record(const char* operation, const char* label, int64_t bytes) {
  label_ = label;
  if (trace_) trace_->push_back({operation, label, bytes});
}

void Communicator::all_reduce_sum(Stream& stream, Matrix x, const char* label) {
  assert(x.ld == x.cols || x.rows <= 1);
  if (stream.reserving()) return;
  const int64_t bytes = x.rows * x.cols * size_of(x.dtype);
  record("all_reduce", label, bytes);
  const ProfileSpan span("collective", label, double(bytes));
  if (size_ > 1 && x.rows * x.cols > 0) do_all_reduce_sum(stream, x);
}

ReduceTicket Communicator::all_reduce_sum_begin(Stream& stream, Matrix x, const char* label) {
  assert(x.ld == x.cols || x.rows <= 1);
  if (stream.reserving()) return 0;
  const int64_t bytes = x.rows * x.cols * size_of(x.dtype);
  record("all_reduce", label, bytes);
  const ProfileSpan span("collective", label, double(bytes));
  return size_ > 1 && x.rows * x.cols > 0 ? do_all_reduce_sum_begin(stream, x) : 0;
}

void Communicator::all_reduce_sum_wait(Stream& stream, ReduceTicket ticket) {
  if (ticket != 0) do_all_reduce_sum_wait(stream, ticket);
}

void Communicator::reduce_scatter_sum(Stream& stream, Matrix x, const char* label) {
  assert(x.rows == 1 && x.cols % size_ == 0);
  if (stream.reserving()) return;
  const int64_t bytes = x.cols * size_of(x.dtype);
  record("reduce_scatter", label, bytes);
  const ProfileSpan span("collective", label, double(bytes));
  if (size_ > 1 && x.cols > 0) do_reduce_scatter_sum(stream, x);
}

void Communicator::all_gather_slices(Stream& stream, Matrix x, const char* label) {
  assert(x.rows == 1 && x.cols % size_ == 0);
  if (stream.reserving()) return;
  const int64_t bytes = x.cols * size_of(x.dtype);
  record("all_gather", label, bytes);
  const ProfileSpan span("collective", label, double(bytes));
  if (size_ > 1 && x.cols > 0) do_all_gather_slices(stream, x);
}

// The sum of what every rank has in its own slice and zeros elsewhere.
void Communicator::do_all_gather_slices(Stream& stream, Matrix x) {
  const int64_t mine = x.cols / size_;
  fill_zero(stream, x.col_range(0, mine * rank_));
  fill_zero(stream, x.col_range(mine * (rank_ + 1), mine * (size_ - rank_ - 1)));
  do_all_reduce_sum(stream, x);
}

void Communicator::all_gather(const void* send, void* receive, int64_t bytes, const char* label) {
  record("all_gather", label, bytes);
  const ProfileSpan span("collective", label, double(bytes));
  if (size_ > 1) {
    do_all_gather(send, receive, bytes);
  } else if (bytes > 0) {
    std::memmove(receive, send, size_t(bytes));
  }
}

void Communicator::broadcast(void* data, int64_t bytes, int root, const char* label) {
  record("broadcast", label, bytes);
  const ProfileSpan span("collective", label, double(bytes));
  if (size_ > 1 && bytes > 0) do_broadcast(data, bytes, root);
}

void Communicator::barrier(const char* label) {
  record("barrier", label, 0);
  const ProfileSpan span("collective", label);
  if (size_ > 1) do_barrier();
}

}  // namespace lorashard
