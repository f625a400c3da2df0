// How a rank passes the time until its peers come.
#pragma once

#include <mpi.h>

#include <chrono>

namespace lorashard {

// Spins, or lets other ranks run where they have no core of their own, while a peer is a moment
// behind; sleeps in a long wait, for example while a peer alone writes a checkpoint: 50 µs at a
// time, after a second half a millisecond.
class Backoff {
 public:
  // Once between two looks at whether the peer has come.
  void pause();

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point start_{};
  int pauses_ = 0;
};

// Whether there is a core for every rank of this host: a short wait need not yield.
bool cores_suffice();

// Returns when every rank of `comm` has called it. MPI's own waits spin at full speed for as long
// as they last; behind this one they are short. Collective.
void wait_for_all(MPI_Comm comm);

}  // namespace lorashard
