// What the launcher that started this process says about the job, by its environment. MPI may not
// know that launcher (srun without PMI, an mpirun of another MPI): every task would then be a job
// of its own, all in one run folder.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace lorashard {

struct LauncherClaims {
  struct Claim {
    std::string variable;      // that says so, "PMI_SIZE"
    std::optional<int> ranks;  // none: there are some, and nothing says how many
    int at_least = 1;
  };
  std::vector<Claim> sizes;
  std::optional<int> rank;  // of this task
};

// Of this process. To be asked before MPI starts, which may set such variables itself.
LauncherClaims launcher_claims();

// Why a job of `world_size` ranks, as MPI sees it, is not what was started, and what to do; none
// where a claim agrees or there is none. `mpi`: the library's name, empty where MPI was not asked.
std::optional<std::string> launcher_mismatch(const LauncherClaims& claims, int world_size,
                                             const std::string& mpi);

}  // namespace lorashard
