// Decides from heartbeats whether a rank waits for peers that will never come. Pure: time and
// heartbeats are arguments (from parallel/liveness.h), so that tests need no network.
//
// A rank that is heard of and computes, evaluates or writes may take as long as it likes. A wait
// ends where one of its ranks has been silent for the timeout, or where no rank of the job has got
// on for so long: all wait, each for another.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace lorashard {

// What a rank does, as its heartbeats say.
struct Heartbeat {
  uint64_t progress = 0;  // changes with every collective that begins or ends
  uint64_t group = 0;     // of the collective that it waits in; 0: it does not wait
  uint64_t call = 0;      // the collective's number within the group
  bool lost = false;      // it has given up: the job ends
  bool leaving = false;   // it is done and will be silent
};

class PeerWatch {
 public:
  PeerWatch(int rank, int ranks);

  // Times are seconds on any clock that stands still while this process does.
  void heard(int peer, const Heartbeat& beat, double now);
  // What this rank does itself.
  void observe_self(const Heartbeat& beat, double now);

  // Whether this rank has waited long enough for `members` (world ranks of its group), or a peer
  // has given up.
  bool must_end(const std::vector<int>& members, double timeout, double now) const;
  // How long this rank has been in its present collective.
  double waited(double now) const;
  // Of `members`: the ranks that have not come to this rank's collective, by what is known of them.
  struct Awaited {
    std::vector<int> silent, elsewhere;
    double silent_s = 0;  // the longest silence of them
    bool never_heard = false;
  };
  Awaited awaited(const std::vector<int>& members, double timeout, double now) const;
  // Peers that no heartbeat has come from.
  std::vector<int> never_heard() const;

 private:
  struct Peer {
    Heartbeat beat;
    bool known = false;
    double heard_at = 0, progress_at = 0;
  };
  bool silent(int peer, double timeout, double now) const;

  int rank_;
  std::vector<Peer> peers_;
  Heartbeat self_;
  double since_ = 0;  // of self_.progress
};

}  // namespace lorashard
