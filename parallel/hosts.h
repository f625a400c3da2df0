// Which host each rank of the job is on.
#pragma once

#include <string>
#include <vector>

namespace lorashard {

struct Hosts {
  std::vector<int> first_rank;  // by world rank: the lowest rank on its host, which stands for it
  std::vector<std::string> names;  // by world rank: what the host calls itself
  bool several() const;
  // "rank 3 on host node2".
  std::string place(int world_rank) const;
  // "ranks 2, 3 on host node2; rank 5 on host node3", in the order given.
  std::string places(const std::vector<int>& world_ranks) const;
};

// Of MPI_COMM_WORLD. Collective the first time. REQUIRES: MPI is up.
const Hosts& hosts();

}  // namespace lorashard
