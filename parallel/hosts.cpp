#include "parallel/hosts.h"

#include <mpi.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <set>
#include <utility>

#include "parallel/mpi_check.h"

namespace lorashard {
namespace {

Hosts find_hosts() {
  int rank = 0, size = 0;
  check_mpi(MPI_Comm_rank(MPI_COMM_WORLD, &rank), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(MPI_COMM_WORLD, &size), "MPI_Comm_size");
  MPI_Comm host;
  check_mpi(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host),
            "MPI_Comm_split_type");
  int first = rank;  // ranks of a host keep their order, so its rank 0 is the lowest
  check_mpi(MPI_Bcast(&first, 1, MPI_INT, 0, host), "MPI_Bcast");
  MPI_Comm_free(&host);
  constexpr size_t kLongest = 256;  // HOST_NAME_MAX is 64
  std::array<char, kLongest> mine{};
  if (::gethostname(mine.data(), mine.size() - 1) != 0) mine = {'?'};
  std::vector<char> all(kLongest * size_t(size));
  Hosts found;
  found.first_rank.resize(size_t(size));
  check_mpi(MPI_Allgather(&first, 1, MPI_INT, found.first_rank.data(), 1, MPI_INT, MPI_COMM_WORLD),
            "MPI_Allgather");
  check_mpi(MPI_Allgather(mine.data(), int(kLongest), MPI_BYTE, all.data(), int(kLongest), MPI_BYTE,
                          MPI_COMM_WORLD),
            "MPI_Allgather");
  for (int r = 0; r < size; ++r) {
    std::string name = all.data() + kLongest * size_t(r);
    // Hosts that call themselves alike (images of one machine) are distinguished by their order.
    std::set<int> before;
    for (int q = 0; q < r; ++q) {
      if (found.first_rank[size_t(q)] < found.first_rank[size_t(r)] &&
          name == all.data() + kLongest * size_t(q)) {
        before.insert(found.first_rank[size_t(q)]);
      }
    }
    if (!before.empty()) name += " (the " + std::to_string(before.size() + 1) + ". of that name)";
    found.names.push_back(std::move(name));
  }
  return found;
}

}  // namespace

bool Hosts::several() const {
  return std::any_of(first_rank.begin(), first_rank.end(), [](int r) { return r != 0; });
}

std::string Hosts::place(int world_rank) const {
  return "rank " + std::to_string(world_rank) + " on host " + names[size_t(world_rank)];
}

std::string Hosts::places(const std::vector<int>& world_ranks) const {
  std::string text;
  for (size_t i = 0; i < world_ranks.size();) {
    size_t end = i;
    std::string ranks;
    while (end < world_ranks.size() &&
           first_rank[size_t(world_ranks[end])] == first_rank[size_t(world_ranks[i])]) {
      ranks += (ranks.empty() ? "" : ", ") + std::to_string(world_ranks[end++]);
    }
    text += (text.empty() ? "" : "; ") + std::string(end - i > 1 ? "ranks " : "rank ") + ranks +
            " on host " + names[size_t(world_ranks[i])];
    i = end;
  }
  return text;
}

const Hosts& hosts() {
  static const Hosts found = find_hosts();
  return found;
}

}  // namespace lorashard
