// Loops over the threads of a Stream. Which thread runs an index never changes its result, so
// kernels built on these loops give the same bits for any thread count.
#pragma once

#include <omp.h>

#include <algorithm>

#include "kernels/stream.h"

namespace lorashard {

// Runs body(begin, end) on contiguous parts of [0, n), at most one a thread. Work of less than
// `grain` indices a part is not worth a thread.
template <class Body>
void parallel_for(Stream& stream, int64_t n, int64_t grain, const Body& body) {
  const int64_t parts = std::min<int64_t>(stream.threads(), n / std::max<int64_t>(grain, 1));
  if (parts <= 1) {
    if (n > 0) body(int64_t{0}, n);
    return;
  }
#pragma omp parallel num_threads(int(parts))
  {
    // The runtime may give fewer threads than asked for.
    const int64_t team = omp_get_num_threads(), self = omp_get_thread_num();
    const int64_t begin = n * self / team, end = n * (self + 1) / team;
    if (begin < end) body(begin, end);
  }
}

// Runs body(index, thread) for every index of [0, n); threads take the next index when free, so
// long tasks should come first. 0 <= thread < stream.threads().
template <class Body>
void parallel_tasks(Stream& stream, int64_t n, const Body& body) {
  const int team = int(std::min<int64_t>(stream.threads(), n));
  if (team <= 1) {
    for (int64_t i = 0; i < n; ++i) body(i, 0);
    return;
  }
#pragma omp parallel for num_threads(team) schedule(dynamic, 1)
  for (int64_t i = 0; i < n; ++i) body(i, omp_get_thread_num());
}

}  // namespace lorashard
