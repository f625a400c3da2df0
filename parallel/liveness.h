// No wait for a peer is without an end: each rank reports to all others by small messages of its
// own (parallel/datagrams.h) that it lives and whether it waits, and a thread beside the run ends
// the job (status 3) when its rank waits for peers that will not come (parallel/peer_watch.h).
// Every rank that still lives says in one line what it waited in, and for whom.
//
// Without a job of several ranks none of these functions does anything.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace lorashard {

// The ranks that meet in a communicator.
struct WaitGroup {
  uint64_t id = 0;           // the same on its members, and no other group's
  std::vector<int> members;  // world ranks
  uint64_t calls = 0;        // collectives that this rank has come to
};

// A group that stays for as long as the process.
WaitGroup& make_wait_group(uint64_t id, std::vector<int> members);

// From now on this rank is heard of. Collective over MPI_COMM_WORLD; stop before the process ends.
void start_liveness();
void stop_liveness();

// Seconds after which a wait for a silent rank ends; 0: never. 300 at first.
void set_peer_timeout(int64_t seconds);
// The optimizer step that collectives belong to from now on, for the message; 0: none.
void set_step_for_waits(int64_t step);

// While it exists this rank, on the thread that calls MPI, waits for the group's others.
class PeerWait {
 public:
  // The label is copied.
  PeerWait(WaitGroup& group, const char* operation, const char* label);
  ~PeerWait();
  PeerWait(const PeerWait&) = delete;
  PeerWait& operator=(const PeerWait&) = delete;
};

}  // namespace lorashard
