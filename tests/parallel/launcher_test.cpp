#include "parallel/launcher.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <map>

namespace lorashard {
namespace {

using Environment = std::map<std::string, std::string>;

// The mismatch that a process with this environment meets.
std::optional<std::string> mismatch(const Environment& environment, int world_size) {
  for (const char* name :
       {"OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "PMI_SIZE", "PMI_RANK", "PMIX_RANK",
        "SLURM_NTASKS", "SLURM_PROCID", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "ENVIRONMENT"}) {
    ::unsetenv(name);
  }
  for (const auto& [name, value] : environment) ::setenv(name.c_str(), value.c_str(), 1);
  const auto text = launcher_mismatch(launcher_claims(), world_size, "Open MPI");
  for (const auto& [name, value] : environment) ::unsetenv(name.c_str());
  return text;
}

TEST(Launcher, OfWhichMpiKnowsAllRanksIsAccepted) {
  EXPECT_FALSE(mismatch({}, 1));
  EXPECT_FALSE(mismatch({{"OMPI_COMM_WORLD_SIZE", "4"}, {"OMPI_COMM_WORLD_RANK", "3"}}, 4));
  EXPECT_FALSE(mismatch({{"PMI_SIZE", "2"}, {"PMI_RANK", "1"}}, 2));
  // srun --mpi=pmix.
  EXPECT_FALSE(mismatch(
      {{"PMIX_RANK", "1"}, {"SLURM_PROCID", "1"}, {"SLURM_NTASKS", "4"}, {"SLURM_STEP_ID", "0"}},
      4));
  EXPECT_FALSE(mismatch({{"PMIX_RANK", "2"}}, 4));
  // mpirun in a batch script; its daemons on other nodes are tasks of srun, two of them.
  EXPECT_FALSE(mismatch({{"OMPI_COMM_WORLD_SIZE", "16"},
                         {"SLURM_PROCID", "1"},
                         {"SLURM_NTASKS", "2"},
                         {"SLURM_STEP_ID", "0"}},
                        16));
  // One process of a batch script, of a shell in an allocation, of an interactive step.
  EXPECT_FALSE(
      mismatch({{"SLURM_NTASKS", "8"}, {"SLURM_PROCID", "0"}, {"ENVIRONMENT", "BATCH"}}, 1));
  EXPECT_FALSE(mismatch({{"SLURM_NTASKS", "8"}}, 1));
  EXPECT_FALSE(mismatch({{"SLURM_NTASKS", "8"},
                         {"SLURM_PROCID", "0"},
                         {"SLURM_STEP_NUM_TASKS", "1"},
                         {"SLURM_STEP_ID", "4294967290"}},
                        1));
  EXPECT_FALSE(mismatch({{"SLURM_NTASKS", "1"}, {"SLURM_PROCID", "0"}, {"SLURM_STEP_ID", "3"}}, 1));
}

TEST(Launcher, ThatMpiDoesNotSeeIsRefused) {
  const auto expect = [](const Environment& environment, const std::string& part) {
    const auto text = mismatch(environment, 1);
    ASSERT_TRUE(text) << part;
    EXPECT_NE(text->find(part), std::string::npos) << *text;
    EXPECT_NE(text->find("mpirun -n "), std::string::npos) << *text;
  };
  expect({{"SLURM_NTASKS", "2"}, {"SLURM_PROCID", "0"}, {"SLURM_STEP_ID", "0"}}, "srun --mpi=pmix");
  expect({{"SLURM_NTASKS", "2"}, {"SLURM_PROCID", "1"}}, "SLURM_NTASKS says that 2 ranks");
  // A step of an allocation with more tasks than the step has.
  expect({{"SLURM_NTASKS", "8"},
          {"SLURM_STEP_NUM_TASKS", "2"},
          {"SLURM_PROCID", "0"},
          {"SLURM_STEP_ID", "0"},
          {"ENVIRONMENT", "BATCH"}},
         "SLURM_STEP_NUM_TASKS says that 2 ranks");
  expect({{"PMI_SIZE", "3"}, {"PMI_RANK", "0"}}, "PMI_SIZE says that 3 ranks");
  expect({{"PMI_RANK", "0"}}, "PMI_RANK says that this is one of several");
  expect({{"PMIX_RANK", "1"}}, "PMIX_RANK");
  expect({{"OMPI_COMM_WORLD_SIZE", "2"}, {"OMPI_COMM_WORLD_RANK", "1"}}, "OMPI_COMM_WORLD_SIZE");
}

}  // namespace
}  // namespace lorashard
