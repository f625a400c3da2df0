#include "parallel/datagrams.h"

#include <ifaddrs.h>
#include <mpi.h>
#include <net/if.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <random>
#include <string>

#include "parallel/hosts.h"
#include "parallel/mpi_check.h"

namespace lorashard {
namespace {

constexpr size_t kMostAddresses = 8;

// Before the message itself.
struct Header {
  uint64_t job;
  int32_t rank;
};

// A name outside the file system, which goes with its socket.
socklen_t local_address(sockaddr_un& address, uint64_t job, int rank) {
  std::memset(&address, 0, sizeof address);
  address.sun_family = AF_UNIX;
  const std::string name = "lorashard-" + std::to_string(job) + "-" + std::to_string(rank);
  std::memcpy(address.sun_path + 1, name.data(), name.size());
  return socklen_t(offsetof(sockaddr_un, sun_path) + 1 + name.size());
}

// What other hosts may reach this one by.
std::vector<in_addr_t> own_addresses() {
  std::vector<in_addr_t> found;
  ifaddrs* all = nullptr;
  if (::getifaddrs(&all) != 0) return found;
  for (const ifaddrs* a = all; a; a = a->ifa_next) {
    if (!a->ifa_addr || a->ifa_addr->sa_family != AF_INET) continue;
    if (!(a->ifa_flags & IFF_UP) || (a->ifa_flags & IFF_LOOPBACK)) continue;
    if (found.size() < kMostAddresses) {
      found.push_back(reinterpret_cast<const sockaddr_in*>(a->ifa_addr)->sin_addr.s_addr);
    }
  }
  ::freeifaddrs(all);
  return found;
}

}  // namespace

Datagrams::Datagrams() {
  MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
  if (rank_ == 0) job_ = uint64_t(std::random_device{}()) << 32 | std::random_device{}();
  check_mpi(MPI_Bcast(&job_, 1, MPI_UINT64_T, 0, MPI_COMM_WORLD), "MPI_Bcast");

  wake_ = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  local_ = ::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  sockaddr_un name;
  const socklen_t length = local_address(name, job_, rank_);
  ::bind(local_, reinterpret_cast<const sockaddr*>(&name), length);

  struct Reach {
    in_port_t port = 0;
    uint16_t count = 0;
    in_addr_t addresses[kMostAddresses] = {};
  } mine;
  if (hosts().several()) {
    udp_ = ::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    sockaddr_in any{};
    any.sin_family = AF_INET;
    socklen_t size = sizeof any;
    if (::bind(udp_, reinterpret_cast<const sockaddr*>(&any), size) == 0 &&
        ::getsockname(udp_, reinterpret_cast<sockaddr*>(&any), &size) == 0) {
      mine.port = any.sin_port;
      const std::vector<in_addr_t> own = own_addresses();
      mine.count = uint16_t(own.size());
      std::copy(own.begin(), own.end(), mine.addresses);
    }
  }
  const auto& first = hosts().first_rank;
  std::vector<Reach> all(first.size());
  check_mpi(MPI_Allgather(&mine, sizeof mine, MPI_BYTE, all.data(), sizeof mine, MPI_BYTE,
                          MPI_COMM_WORLD),
            "MPI_Allgather");
  peers_.resize(all.size());
  for (size_t r = 0; r < all.size(); ++r) {
    peers_[r].local = first[r] == first[size_t(rank_)];
    for (size_t i = 0; i < all[r].count && i < kMostAddresses; ++i) {
      sockaddr_in address{};
      address.sin_family = AF_INET;
      address.sin_port = all[r].port;
      address.sin_addr.s_addr = all[r].addresses[i];
      peers_[r].addresses.push_back(address);
    }
  }
}

Datagrams::~Datagrams() {
  for (const int fd : {udp_, local_, wake_}) {
    if (fd >= 0) ::close(fd);
  }
}

void Datagrams::send(int rank, const char* packet, size_t bytes) {
  const Peer& peer = peers_[size_t(rank)];
  // A full queue or an unreachable peer: the next message will say as much.
  constexpr int kFlags = MSG_DONTWAIT | MSG_NOSIGNAL;
  if (peer.local) {
    sockaddr_un name;
    const socklen_t length = local_address(name, job_, rank);
    ::sendto(local_, packet, bytes, kFlags, reinterpret_cast<const sockaddr*>(&name), length);
    return;
  }
  for (const sockaddr_in& to : peer.addresses) {
    ::sendto(udp_, packet, bytes, kFlags, reinterpret_cast<const sockaddr*>(&to), sizeof to);
  }
}

void Datagrams::send_to_all(const void* data, int bytes) {
  char packet[sizeof(Header) + kMostBytes];
  const Header header{job_, rank_};
  std::memset(packet, 0, sizeof packet);
  std::memcpy(packet, &header, sizeof header);
  std::memcpy(packet + sizeof header, data, size_t(std::min(bytes, kMostBytes)));
  for (size_t r = 0; r < peers_.size(); ++r) {
    if (int(r) != rank_) send(int(r), packet, sizeof(Header) + size_t(bytes));
  }
}

int Datagrams::take(int socket, void* data, int bytes) {
  while (socket >= 0) {
    char packet[sizeof(Header) + kMostBytes];
    sockaddr_storage from{};
    socklen_t length = sizeof from;
    const ssize_t n = ::recvfrom(socket, packet, sizeof packet, MSG_DONTWAIT,
                                 reinterpret_cast<sockaddr*>(&from), &length);
    if (n < 0 && (errno == ECONNREFUSED || errno == EINTR)) continue;  // of an earlier send
    if (n < 0) return -1;
    Header header;
    if (size_t(n) != sizeof header + size_t(bytes)) continue;
    std::memcpy(&header, packet, sizeof header);
    if (header.job != job_ || header.rank < 0 || size_t(header.rank) >= peers_.size() ||
        header.rank == rank_) {
      continue;
    }
    if (from.ss_family == AF_INET) {
      auto& addresses = peers_[size_t(header.rank)].addresses;
      addresses.resize(1);
      std::memcpy(addresses.data(), &from, sizeof(sockaddr_in));
    }
    std::memcpy(data, packet + sizeof header, size_t(bytes));
    return header.rank;
  }
  return -1;
}

int Datagrams::receive(void* data, int bytes) {
  const int rank = take(local_, data, bytes);
  return rank >= 0 ? rank : take(udp_, data, bytes);
}

void Datagrams::wait(int milliseconds) {
  pollfd sockets[] = {{local_, POLLIN, 0}, {udp_, POLLIN, 0}, {wake_, POLLIN, 0}};
  ::poll(sockets, 3, milliseconds);  // of a negative descriptor it knows nothing
}

void Datagrams::wake() {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = ::write(wake_, &one, sizeof one);
}

}  // namespace lorashard
