#include "parallel/waiting.h"

#include <sched.h>
#include <unistd.h>

#include <thread>

#include "parallel/mpi.h"
#include "parallel/mpi_check.h"

namespace lorashard {

bool cores_suffice() {
  static const bool suffice = host_rank().size <= sysconf(_SC_NPROCESSORS_ONLN);
  return suffice;
}

void Backoff::pause() {
  using std::chrono::microseconds;
  constexpr auto kAwake = microseconds(1000), kShort = microseconds(50), kLong = microseconds(500),
                 kLongAfter = microseconds(1000000);
  constexpr int kClockEvery = 16;  // pauses; reading the clock costs as much as some
  const bool awake = start_ == Clock::time_point{} || pauses_ % kClockEvery != 0;
  if (start_ == Clock::time_point{}) start_ = Clock::now();
  ++pauses_;
  if (!awake) {
    const auto waited = Clock::now() - start_;
    if (waited > kAwake) {
      --pauses_;  // read the clock each time from now on
      std::this_thread::sleep_for(waited > kLongAfter ? kLong : kShort);
      return;
    }
  }
  if (!cores_suffice()) sched_yield();
}

void wait_for_all(MPI_Comm comm) {
  MPI_Request request;
  check_mpi(MPI_Ibarrier(comm, &request), "MPI_Ibarrier");
  Backoff backoff;
  for (int done = 0; true; backoff.pause()) {
    check_mpi(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "MPI_Test");
    if (done) return;
  }
}

}  // namespace lorashard
