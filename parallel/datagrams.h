// Small messages to every other rank of the job beside MPI, unordered and without a promise to
// arrive: between hosts by UDP, within one by a Unix socket, so that no interface need be up. None
// of the calls wait.
#pragma once

#include <netinet/in.h>

#include <cstdint>
#include <vector>

namespace lorashard {

class Datagrams {
 public:
  static constexpr int kMostBytes = 128;

  // Collective over MPI_COMM_WORLD: the ranks exchange their addresses. Where a socket cannot be
  // had, messages go nowhere.
  Datagrams();
  ~Datagrams();
  Datagrams(const Datagrams&) = delete;
  Datagrams& operator=(const Datagrams&) = delete;

  void send_to_all(const void* data, int bytes);
  // The next message that has come: its rank, with `data` filled in; -1: there is none.
  int receive(void* data, int bytes);
  // Waits until a message comes, `milliseconds` have passed, or wake() is called on another thread.
  void wait(int milliseconds);
  void wake();

 private:
  // What a rank can be sent to. Of a rank on another host the address it was last heard from is
  // enough.
  struct Peer {
    bool local = false;
    std::vector<sockaddr_in> addresses;
  };
  void send(int rank, const char* packet, size_t bytes);
  int take(int socket, void* data, int bytes);

  int rank_ = 0;
  uint64_t job_ = 0;  // drawn by rank 0, so that other jobs' messages are none of ours
  int udp_ = -1, local_ = -1, wake_ = -1;
  std::vector<Peer> peers_;
};

}  // namespace lorashard
