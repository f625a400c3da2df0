// The two ends of a tensor-parallel region: the stretch of a layer in which each rank of the group
// computes with its part of the weights (Shoeybi et al. 2019, section 3, where they are f and g).
//
//   enter: the input is the same on every rank. Forward: nothing to do. Backward: each rank has its
//          part's gradient of the input, and they are all-reduced.
//   leave: each rank has a partial output. Forward: they are all-reduced. Backward: the gradient is
//          the same on every rank, nothing to do.
//
// (The ranks also exchange statistics of the loss, by an all-reduce that is no end of a region:
// trainer/model/loss.cpp.) Each all-reduce comes whole, or as a pair between which the stream does
// other work; x(T,H) is reduced in place.
#pragma once

#include "parallel/collectives.h"

namespace lorashard {

inline void leave_region(Communicator& tensor, Stream& stream, Matrix x, const char* label) {
  tensor.all_reduce_sum(stream, x, label);
}
[[nodiscard]] inline ReduceTicket leave_region_begin(Communicator& tensor, Stream& stream, Matrix x,
                                                     const char* label) {
  return tensor.all_reduce_sum_begin(stream, x, label);
}
inline void leave_region_end(Communicator& tensor, Stream& stream, ReduceTicket ticket) {
  tensor.all_reduce_sum_wait(stream, ticket);
}

inline void enter_region_backward(Communicator& tensor, Stream& stream, Matrix dx,
                                  const char* label) {
  tensor.all_reduce_sum(stream, dx, label);
}
[[nodiscard]] inline ReduceTicket enter_region_backward_begin(Communicator& tensor, Stream& stream,
                                                              Matrix dx, const char* label) {
  return tensor.all_reduce_sum_begin(stream, dx, label);
}
inline void enter_region_backward_end(Communicator& tensor, Stream& stream, ReduceTicket ticket) {
  tensor.all_reduce_sum_wait(stream, ticket);
}

}  // namespace lorashard
