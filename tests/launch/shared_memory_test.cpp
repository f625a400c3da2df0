// A /dev/shm that is full, as a killed job leaves it in a container: the ranks of a host fall back
// to messages, say so once, and give the same losses.
#include "tests/launch/scene.h"

namespace lorashard::test {
namespace {

TEST(SharedMemory, ThatIsFullIsNotWaitedFor) {
  if (test::run({.arguments = {"unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"}})
          .status != 0) {
    GTEST_SKIP() << "a /dev/shm of its own needs root";
  }
  const Scene scene;
  Command job = scene.command(4, scene.configured("train", {"--set", "parallel.tensor=2"}));
  // 4 KiB are left of 4 MiB. The scene may lie in /dev/shm itself, and is shown there again.
  const std::string full =
      "mount --bind \"$SCENE\" /mnt && mount -t tmpfs -o size=4m tmpfs /dev/shm && "
      "mkdir -p \"$SCENE\" && mount --bind /mnt \"$SCENE\" && "
      "head -c 4m /dev/zero >/dev/shm/left 2>/dev/null; exec \"$@\"";
  job.environment["SCENE"] = job.environment["TMPDIR"] = scene.dir.path();
  // MPI's own files go where there is room: it would warn of a full /dev/shm, and Open MPI 4.1's
  // mpirun now and then crashes while it prints that.
  job.environment["OMPI_MCA_btl_vader_backing_directory"] = scene.dir.path();
  std::vector<std::string> inside{"unshare", "-m", "sh", "-c", full, "sh"};
  job.arguments.insert(job.arguments.begin(), inside.begin(), inside.end());
  job.time_limit_s = 60;
  const Outcome done = test::run(job);
  ASSERT_EQ(done.status, 0) << done.text();
  EXPECT_EQ(lines_with(done.err, "note: ranks of one host sum by messages").size(), 1u)
      << done.text();
  const std::vector<double> found = losses(scene.run, 8);
  for (size_t i = 0; i < found.size(); ++i) {
    const double expected = scene.expected.at("steps")[i].at("loss");
    EXPECT_NEAR(found[i], expected, 2e-4 * expected);
  }
}

}  // namespace
}  // namespace lorashard::test
