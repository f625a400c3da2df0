// Failures in the middle of a run, of one rank or of all: the whole job ends soon, with one error.
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>

#include "tests/launch/scene.h"

namespace lorashard::test {
namespace {

// The contract's 10 s from the failure to the end of the job.
constexpr double kMostSeconds = 10;

// A run that would go on for hours.
struct EndlessRun : Scene {
  Process start(int ranks, const std::vector<std::string>& more = {}) const {
    std::vector<std::string> arguments = configured("train", {"--set", "train.steps=1000000"});
    arguments.insert(arguments.end(), more.begin(), more.end());
    return Process(command(ranks, arguments));
  }
  bool has_begun() const { return json_lines(run / "metrics.jsonl").size() >= 3; }
};

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// One data-parallel rank of two comes upon a line that was whole when the run began: of four
// sequences a step in the file's order, the second rank reads the third and the fourth.
TEST(LostRank, WhoseDataBreaksEndsTheJob) {
  const EndlessRun scene;
  Process job = scene.start(2);
  ASSERT_TRUE(job.wait_until([&] { return scene.has_begun(); })) << job.wait().text();
  const std::string data = read_file(scene.data);
  size_t at = 0;
  for (int line = 1; line < 7; ++line) at = data.find('\n', at) + 1;
  const int file = ::open(scene.data.c_str(), O_WRONLY);
  ASSERT_EQ(::pwrite(file, "!", 1, off_t(at)), 1);
  ::close(file);
  const double failed = now();
  expect_one_error(job.wait(), 2, scene.data.string() + ":7", {"not JSON"});
  EXPECT_LT(now() - failed, kMostSeconds);
}

// The ranks of a tensor-parallel group read the same line and meet the same error.
TEST(LostRank, ErrorsThatSeveralRanksMeetAreToldOnce) {
  const EndlessRun scene;
  Process job = scene.start(4, {"--set", "parallel.tensor=2"});
  ASSERT_TRUE(job.wait_until([&] { return scene.has_begun(); })) << job.wait().text();
  ASSERT_EQ(::truncate(scene.data.c_str(), 100), 0);
  const double failed = now();
  const Outcome done = job.wait();
  EXPECT_LT(now() - failed, kMostSeconds);
  EXPECT_EQ(lines_with(done.err, "error: ").size(), 1u) << done.text();
  EXPECT_TRUE(done.status == 2 || done.status == 3) << done.text();
  EXPECT_NE(done.err.find("error: " + scene.data.string()), std::string::npos) << done.text();
}

// The rank that writes cannot: the folder of the checkpoints has become a file.
TEST(LostRank, ThatCannotWriteItsCheckpointEndsTheJob) {
  for (const int ranks : {2, 0}) {
    const EndlessRun scene;
    Process job = scene.start(ranks, {"--set", "checkpoint.every=1"});
    ASSERT_TRUE(job.wait_until([&] { return scene.has_begun(); })) << job.wait().text();
    // Between two checkpoints it is made again at once, so this may take some trials.
    ASSERT_TRUE(job.wait_until([&] {
      std::error_code ignored;
      fs::remove_all(scene.run / "aside", ignored);
      fs::rename(scene.run / "checkpoints", scene.run / "aside", ignored);
      const int file =
          ::open((scene.run / "checkpoints").c_str(), O_CREAT | O_EXCL | O_WRONLY, 0600);
      if (file >= 0) ::close(file);
      return file >= 0;
    }));
    const double failed = now();
    expect_one_error(job.wait(), 3, (scene.run / "checkpoints").string());
    EXPECT_LT(now() - failed, kMostSeconds);
  }
}

TEST(LostRank, ThatIsKilledTakesTheJobWithIt) {
  const EndlessRun scene;
  Process job = scene.start(3, {"--set", "parallel.tensor=3"});
  ASSERT_TRUE(job.wait_until([&] { return scene.has_begun(); })) << job.wait().text();
  const std::vector<pid_t> ranks = job.find(kLorashard);
  ASSERT_EQ(ranks.size(), 3u);
  const double failed = now();
  ::kill(ranks[1], SIGKILL);
  const Outcome done = job.wait();
  EXPECT_LT(now() - failed, kMostSeconds);
  EXPECT_FALSE(done.timed_out) << done.text();
  EXPECT_NE(done.status, 0) << done.text();
  // mpirun may be gone a little before its ranks.
  const auto gone = [&] {
    const std::string status = read_file("/proc/" + std::to_string(ranks[0]) + "/status") +
                               read_file("/proc/" + std::to_string(ranks[2]) + "/status");
    return lines_with(status, "Name:").size() == lines_with(status, "State:\tZ").size();
  };
  while (!gone() && now() - failed < kMostSeconds) ::usleep(10000);
  EXPECT_TRUE(gone()) << "a rank is still there";
}

TEST(NonFiniteLoss, StopsAllRanksAndNamesTheStep) {
  const EndlessRun scene;
  for (const int ranks : {2, 0}) {
    fs::remove_all(scene.run);
    Process job =
        scene.start(ranks, {"--set", "optimizer.learning_rate=1e30", "--set",
                            "schedule.kind=CONSTANT", "--set", "schedule.warmup_steps=0"});
    const Outcome done = job.wait();
    EXPECT_EQ(done.status, 3) << done.text();
    const std::string line = expect_one_error(done, 3, "step 2", {"learning_rate"});
    EXPECT_EQ(losses(scene.run, 1).size(), 1u);
    EXPECT_FALSE(fs::exists(scene.run / "adapter"));
  }
}

}  // namespace
}  // namespace lorashard::test
