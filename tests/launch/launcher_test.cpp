// Tasks of a launcher that MPI does not know: each would be a run of its own in one folder.
#include "tests/launch/scene.h"

namespace lorashard::test {
namespace {

TEST(Launcher, ThatMpiDoesNotSeeStartsNoRun) {
  const Scene scene;
  const auto start = [&](const std::string& rank, const std::string& size_name,
                         const std::string& rank_name, const std::vector<std::string>& arguments) {
    Command command = scene.command(0, arguments);
    command.environment[size_name] = "2";
    command.environment[rank_name] = rank;
    return test::run(command);
  };
  const std::vector<std::string> train = scene.configured("train");
  for (const auto& [size, rank] :
       {std::pair{"PMI_SIZE", "PMI_RANK"}, {"SLURM_NTASKS", "SLURM_PROCID"}}) {
    expect_one_error(start("0", size, rank, train), 2, "launcher", {size, "mpirun -n 2"});
    const Outcome other = start("1", size, rank, train);  // one of the two speaks
    EXPECT_EQ(other.status, 2) << other.text();
    EXPECT_EQ(other.err, "");
    EXPECT_FALSE(fs::exists(scene.run));
    // What one rank does, one task does.
    EXPECT_NE(start("0", size, rank, {"inspect", scene.model}).out, "");
    const Outcome idle = start("1", size, rank, {"inspect", scene.model});
    EXPECT_EQ(idle.status, 0) << idle.text();
    EXPECT_EQ(idle.out, "");
  }
}

}  // namespace
}  // namespace lorashard::test
