#include "parallel/launcher.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <string_view>

namespace lorashard {
namespace {

std::optional<int> number(const char* variable) {
  const char* text = std::getenv(variable);
  if (!text) return std::nullopt;
  const std::string_view all(text);
  int value = 0;
  const auto [end, error] = std::from_chars(all.data(), all.data() + all.size(), value);
  if (error != std::errc{} || end != all.data() + all.size() || value < 0) return std::nullopt;
  return value;
}

// A task of srun, as opposed to a batch script or a shell in an allocation, which have the
// allocation's SLURM_NTASKS too and are one process.
bool is_slurm_task() {
  if (!number("SLURM_PROCID")) return false;
  const char* environment = std::getenv("ENVIRONMENT");
  const bool batch = environment && std::string_view(environment) == "BATCH";
  return std::getenv("SLURM_STEP_ID") || !batch;
}

}  // namespace

LauncherClaims launcher_claims() {
  LauncherClaims claims;
  const auto size = [&](const char* variable) {
    if (const auto n = number(variable)) claims.sizes.push_back({variable, n, *n});
    return number(variable).has_value();
  };
  // A rank without a size: there are at least as many ranks as its number says.
  const auto rank = [&](const char* variable, bool sized) {
    const auto r = number(variable);
    if (!r) return;
    if (!claims.rank) claims.rank = r;
    if (!sized) claims.sizes.push_back({variable, std::nullopt, *r + 1});
  };
  rank("OMPI_COMM_WORLD_RANK", size("OMPI_COMM_WORLD_SIZE"));  // Open MPI's mpirun
  rank("PMI_RANK", size("PMI_SIZE"));                          // MPICH's, srun --mpi=pmi2, others
  if (is_slurm_task()) {
    rank("SLURM_PROCID", size("SLURM_STEP_NUM_TASKS") || size("SLURM_NTASKS"));
  }
  // PMIx has no variable with the size; who has set one of the above may have set this too.
  rank("PMIX_RANK", !claims.sizes.empty());
  return claims;
}

std::optional<std::string> launcher_mismatch(const LauncherClaims& claims, int world_size,
                                             const std::string& mpi) {
  // Launchers run inside each other (mpirun in a step of srun): one that agrees is enough. Where
  // MPI sees several ranks, their number is what counts.
  const auto agrees = [&](const LauncherClaims::Claim& c) {
    return c.ranks ? *c.ranks == world_size : world_size > 1 && c.at_least <= world_size;
  };
  if (claims.sizes.empty() || std::any_of(claims.sizes.begin(), claims.sizes.end(), agrees)) {
    return std::nullopt;
  }
  const LauncherClaims::Claim& claim = claims.sizes.front();
  const std::string ranks = claim.ranks ? std::to_string(*claim.ranks) : "N";
  const bool slurm = claim.variable.starts_with("SLURM");
  std::string text = claim.variable;
  text += claim.ranks ? " says that " + ranks + " ranks were started"
                      : " says that this is one of several ranks";
  text += ", but " +
          (mpi.empty() ? "MPI was not involved" : mpi + " sees " + std::to_string(world_size)) +
          ", so that each would be a job of its own; start the program with " +
          (slurm ? "srun --mpi=pmix (srun --mpi=list shows what there is) or in the allocation "
                   "with mpirun -n " +
                       ranks
                 : "the mpirun -n " + ranks + " that belongs to the MPI it was built with") +
          ", or, for one rank, without " + claim.variable + " in the environment";
  return text;
}

}  // namespace lorashard
