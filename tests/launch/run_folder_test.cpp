// What happens to the folder of a run when two jobs want it, or the disk has no room.
#include <signal.h>

#include "tests/launch/scene.h"

namespace lorashard::test {
namespace {

// Two jobs in one folder: the second is refused by name whatever it asks for, the first goes on.
// Killed, it holds nothing.
TEST(RunFolder, IsWorkedInByOneJob) {
  const Scene scene;
  std::vector<std::string> longer{"--set", "train.steps=100000", "--set", "checkpoint.every=3"};
  Process first(scene.command(0, scene.configured("train", longer)));
  const auto steps_done = [&] { return json_lines(scene.run / "metrics.jsonl").size(); };
  ASSERT_TRUE(first.wait_until([&] { return steps_done() > 4; })) << first.wait().text();
  const std::string name = "process " + std::to_string(first.find(kLorashard).at(0));
  longer.push_back("--resume");
  for (const int ranks : {0, 2}) {
    expect_one_error(scene.train(ranks, longer), 2, scene.config.string() + ":9:10",
                     {scene.run.string(), "is in use by " + name + " on host "});
  }
  expect_one_error(scene.train(0), 2, scene.config.string() + ":9:10", {"holds a run"});
  const size_t before = steps_done();
  EXPECT_TRUE(first.wait_until([&] { return steps_done() > before + 3; }));
  for (const pid_t pid : first.find(kLorashard)) ::kill(pid, SIGKILL);
  EXPECT_NE(first.wait().status, 0);

  const fs::path latest = scene.run / "checkpoints/latest";
  const std::string step = std::to_string(std::stoi(read_file(latest).substr(5)) + 1);
  const Outcome resumed = scene.train(2, {"--resume", "--set", "train.steps=" + step});
  EXPECT_EQ(resumed.status, 0) << resumed.text();
  EXPECT_FALSE(fs::exists(scene.run / ".lock"));
}

TEST(RunFolder, OfTwoThatBeginAtOnceOneGetsIt) {
  const Scene scene;
  Process a(scene.command(0, scene.configured("train"))),
      b(scene.command(0, scene.configured("train")));
  const Outcome one = a.wait(), other = b.wait();
  const Outcome& won = one.status == 0 ? one : other;
  EXPECT_EQ(won.status, 0) << one.text() << other.text();
  const std::string line =
      expect_one_error(one.status == 0 ? other : one, 2, scene.config.string() + ":9:10");
  EXPECT_TRUE(line.find("is in use by") != std::string::npos ||
              line.find("holds a run") != std::string::npos)
      << line;
  losses(scene.run, 8);
}

// A file that cannot be written whole: reported by the name that the user knows, with what to do;
// the checkpoint before it stays, nothing half-written does, and the run continues from there.
TEST(RunFolder, WithoutRoomTheLastCheckpointStaysAndTheErrorSaysHowToGoOn) {
  const Scene whole, scene;
  const std::vector<std::string> every{"--set", "checkpoint.every=2",
                                       "--set", "lora.dropout=0.1",
                                       "--set", "schedule.kind=CONSTANT"};
  ASSERT_EQ(whole.train(0, every).status, 0);
  std::vector<std::string> begin = every;
  begin.insert(begin.end(), {"--set", "train.steps=4"});
  ASSERT_EQ(scene.train(0, begin).status, 0);

  Command limited = scene.command(0, scene.configured("train", every));
  limited.arguments.push_back("--resume");
  std::vector<std::string> shell{"bash", "-c", "ulimit -f 4; exec \"$@\"", "bash"};  // 4 KiB
  shell.insert(shell.end(), limited.arguments.begin(), limited.arguments.end());
  limited.arguments = shell;
  const Outcome done = test::run(limited);
  const std::string line = expect_one_error(
      done, 3, (scene.run / "checkpoints/step-000006").string(),
      {"cannot be written: File too large", "ulimit -f", "then continue with --resume"});
  EXPECT_EQ(line.find(".tmp-"), std::string::npos) << line;
  EXPECT_EQ(read_file(scene.run / "checkpoints/latest"), "step-000004\n");
  for (const auto& entry : fs::directory_iterator(scene.run / "checkpoints")) {
    EXPECT_FALSE(entry.path().filename().string().starts_with(".")) << entry.path();
  }
  std::vector<std::string> resume = every;
  resume.push_back("--resume");
  const Outcome resumed = scene.train(0, resume);
  ASSERT_EQ(resumed.status, 0) << resumed.text();
  EXPECT_EQ(losses(scene.run, 8), losses(whole.run, 8));
  const std::string weights = "adapter/adapter_model.safetensors";
  EXPECT_TRUE(read_file(scene.run / weights) == read_file(whole.run / weights));
}

// Input errors stand alone: nothing is said of a backend that nothing ran on.
TEST(InputErrors, StandAlone) {
  const Scene scene;
  write_file(scene.data, "{\"input_ids\":[1,2],\"labels\":[-100,-100]}\n");
  const Outcome done = scene.train(0);
  expect_one_error(done, 2, scene.data.string(), {"has a label left"});
  EXPECT_EQ(done.out, "");
  EXPECT_FALSE(fs::exists(scene.run));
}

TEST(AcceptChanges, GoesWithResume) {
  const Scene scene;
  expect_one_error(scene.train(0, {"--accept-changes"}), 2, "command line", {"--resume"});
  ASSERT_EQ(scene.train(0, {"--set", "train.steps=2"}).status, 0);
  write_file(scene.data, read_file(scene.data) + "{\"input_ids\":[1,2,3]}\n");
  expect_one_error(scene.train(2, {"--resume"}), 2, scene.config.string() + ":3:8",
                   {"data.train", "--accept-changes"});
  const Outcome done = scene.train(2, {"--resume", "--accept-changes"});
  EXPECT_EQ(done.status, 0) << done.text();
  EXPECT_EQ(lines_with(done.out, "note: data.train (SHA-256").size(), 1u) << done.text();
  losses(scene.run, 8);
}

}  // namespace
}  // namespace lorashard::test
