// Interrupted runs: killed, stopped by a signal, damaged, and continued at the same or another
// layout.
#include <signal.h>

#include <random>

#include "tests/launch/scene.h"

namespace lorashard::test {
namespace {

constexpr int kSteps = 40;

// A run with everything that a resume could lose: shuffling over 10 epochs of 4 steps, dropout,
// warmup, clipping, decay.
struct LongRun : Scene {
  LongRun() {
    change_config("shuffle: false", "shuffle: true");
    change_config("lora { ", "lora { dropout: 0.1 ");
    change_config("train { steps: 8 ", "train { seed: 7 steps: " + std::to_string(kSteps) + " ");
    change_config("weight_decay: 0.0", "weight_decay: 0.1");
    change_config("compute {", "checkpoint { every: 5 keep_last: 4 }\ncompute {");
  }
  size_t steps_done() const { return json_lines(run / "metrics.jsonl").size(); }
  std::string final_adapter() const { return read_file(run / "adapter/adapter_model.safetensors"); }
};

// Every rank of the running job (0: one process without mpirun) gets `signal`, as from a cluster
// that takes its machine back.
void signal_ranks(const Process& job, int ranks, int signal) {
  const std::vector<pid_t> pids = job.find(kLorashard);
  EXPECT_EQ(int(pids.size()), std::max(ranks, 1));
  for (const pid_t pid : pids) ::kill(pid, signal);
}

std::vector<std::string> tensor(int degree, std::vector<std::string> more = {}) {
  more.insert(more.end(), {"--set", "parallel.tensor=" + std::to_string(degree)});
  return more;
}

struct Layout {
  int ranks, tensor;
};
void PrintTo(const Layout& l, std::ostream* out) { *out << l.ranks << " ranks, TP=" << l.tensor; }

class Kill : public testing::TestWithParam<Layout> {};

TEST_P(Kill, AtRandomMomentsAndResumeEqualsTheUninterruptedRunBitForBit) {
  const auto [ranks, degree] = GetParam();
  const LongRun whole, killed;
  const Outcome reference = whole.train(ranks, tensor(degree));
  ASSERT_EQ(reference.status, 0) << reference.text();
  const std::vector<double> expected = losses(whole.run, kSteps);

  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  // The first may come before any checkpoint (every 5 steps), the others in the middle.
  for (const size_t least : {2 + random() % 5, 14 + random() % 10}) {
    Process job(killed.command(ranks, killed.configured("train", tensor(degree, {"--resume"}))));
    ASSERT_TRUE(job.wait_until([&] { return killed.steps_done() >= least; })) << job.wait().text();
    signal_ranks(job, std::max(ranks, 1), SIGKILL);
    const Outcome done = job.wait();
    EXPECT_FALSE(done.timed_out);
    EXPECT_NE(done.status, 0);
    ASSERT_FALSE(fs::exists(killed.run / "adapter")) << "it ended before it was killed";
  }
  const Outcome resumed = killed.train(ranks, tensor(degree, {"--resume"}));
  ASSERT_EQ(resumed.status, 0) << resumed.text();
  EXPECT_EQ(lines_with(resumed.out, "resumed at step").size(), 1u) << resumed.text();
  EXPECT_EQ(losses(killed.run, kSteps), expected);
  EXPECT_EQ(killed.final_adapter(), whole.final_adapter());
  // Nothing of the killed runs is left.
  for (const auto& entry : fs::directory_iterator(killed.run / "checkpoints")) {
    EXPECT_FALSE(entry.path().filename().string().starts_with(".")) << entry.path();
  }
  // A finished run has nothing to continue, and stays as it is.
  const Outcome finished = killed.train(ranks, tensor(degree, {"--resume"}));
  EXPECT_EQ(finished.status, 0) << finished.text();
  EXPECT_EQ(losses(killed.run, kSteps), expected);
  EXPECT_EQ(killed.final_adapter(), whole.final_adapter());
}

INSTANTIATE_TEST_SUITE_P(Layouts, Kill, testing::Values(Layout{2, 2}, Layout{2, 1}, Layout{0, 1}),
                         [](const auto& info) {
                           return std::to_string(info.param.ranks) + "_ranks_TP" +
                                  std::to_string(info.param.tensor);
                         });

// TP=2 x DP=2, stopped by SIGTERM; continued at DP=2 until SIGINT; finished alone.
TEST(StopSignals, EndWithACheckpointAndTheRunContinuesAtOtherLayouts) {
  const LongRun whole, stopped;
  const Outcome reference = whole.train(0);
  ASSERT_EQ(reference.status, 0) << reference.text();
  const std::vector<double> expected = losses(whole.run, kSteps);

  const auto interrupt = [&](int ranks, int degree, size_t after, int signal) {
    Process job(stopped.command(ranks, stopped.configured("train", tensor(degree, {"--resume"}))));
    ASSERT_TRUE(job.wait_until([&] { return stopped.steps_done() >= after; })) << job.wait().text();
    signal_ranks(job, ranks, signal);
    // One wish from two sides, as when a batch system signals mpirun and its ranks.
    if (job.running()) {
      for (const pid_t pid : job.find(kLorashard)) ::kill(pid, signal);
    }
    const Outcome done = job.wait();
    ASSERT_EQ(done.status, 128 + signal) << done.text();
    EXPECT_EQ(lines_with(done.err, "error: ").size(), 0u) << done.text();
    // The last step is in the checkpoint, whatever checkpoint.every says.
    const size_t steps = stopped.steps_done();
    char name[32];
    std::snprintf(name, sizeof name, "step-%06zu\n", steps);
    EXPECT_EQ(read_file(stopped.run / "checkpoints/latest"), name);
    EXPECT_LT(steps, size_t{kSteps});
    EXPECT_FALSE(fs::exists(stopped.run / "adapter"));
  };
  interrupt(4, 2, 3, SIGTERM);
  interrupt(2, 1, 12, SIGINT);
  interrupt(0, 1, 22, SIGTERM);
  const Outcome last = stopped.train(3, tensor(3, {"--resume"}));
  ASSERT_EQ(last.status, 0) << last.text();
  const std::vector<double> got = losses(stopped.run, kSteps);
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], expected[i], 1e-5 * expected[i]) << i;
}

TEST(Checkpoints, HalfWrittenAndDamagedOnesArePassedOverByName) {
  const LongRun whole, damaged;
  const std::vector<std::string> short_run{"--set", "train.steps=14"};
  ASSERT_EQ(whole.train(0, short_run).status, 0);
  ASSERT_EQ(damaged.train(0, short_run).status, 0);
  const fs::path checkpoints = damaged.run / "checkpoints";
  // As after a kill during the checkpoint of step 14.
  fs::remove_all(damaged.run / "adapter");
  fs::rename(checkpoints / "step-000014", checkpoints / ".step-000014.tmp-1");
  fs::remove(checkpoints / ".step-000014.tmp-1/manifest.textproto");
  // And one bit of the newest whole one has turned.
  const fs::path state = checkpoints / "step-000010/trainer_state.safetensors";
  std::string bytes = read_file(state);
  bytes[bytes.size() / 2] ^= 1;
  write_file(state, bytes);

  std::vector<std::string> resume = short_run;
  resume.push_back("--resume");
  const Outcome done = damaged.train(2, resume);
  ASSERT_EQ(done.status, 0) << done.text();
  const std::vector<std::string> named = lines_with(done.out, "note: checkpoints/step-000010");
  ASSERT_EQ(named.size(), 1u) << done.text();
  EXPECT_NE(named[0].find("trainer_state.safetensors"), std::string::npos) << named[0];
  EXPECT_NE(named[0].find("using step-000005"), std::string::npos) << named[0];
  EXPECT_EQ(lines_with(done.out, "resumed at step 5").size(), 1u) << done.text();
  const std::vector<double> expected = losses(whole.run, 14), got = losses(damaged.run, 14);
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], expected[i], 1e-5 * expected[i]) << i;
  for (const auto& entry : fs::directory_iterator(checkpoints)) {
    EXPECT_FALSE(entry.path().filename().string().starts_with(".")) << entry.path();
  }
  EXPECT_EQ(
      test::run(damaged.command(0, {"inspect", (checkpoints / "step-000010").string()})).status, 0);

  // All damaged: refused, and not begun anew.
  for (const auto& entry : fs::directory_iterator(checkpoints)) {
    if (entry.is_directory()) write_file(entry.path() / "manifest.textproto", "step: 1\n");
  }
  const auto before = damaged.tree();
  expect_one_error(damaged.train(2, resume), 2, checkpoints.string(), {"no whole checkpoint"});
  EXPECT_EQ(difference(before, damaged.tree()), std::vector<std::string>{});
}

// Settings that fix the mathematics of a run stay; an error names the one that changes.
TEST(ResumeWithOtherSettings, IsRefusedAndChangesNothing) {
  const Scene scene;
  scene.train(0, {"--set", "train.steps=2"});
  ASSERT_TRUE(fs::exists(scene.run / "checkpoints/step-000002"));
  const fs::path other_data = scene.dir / "other.jsonl";
  write_file(other_data, read_file(scene.data) + "{\"input_ids\":[1,2,3]}\n");
  const fs::path other_model = scene.dir / "other_model";
  fs::copy(scene.model, other_model);
  std::string weights = read_file(other_model / "model.safetensors");
  weights[weights.size() - 2] ^= 1;
  write_file(other_model / "model.safetensors", weights);

  struct Case {
    std::string setting, value, where;
  };
  const Case cases[] = {
      {"train.seed", "8", "--set train.seed"},
      {"train.global_batch_size", "8", "--set train.global_batch_size"},
      {"data.train", other_data.string(), "--set data.train"},
      {"data.seq_len", "16", "--set data.seq_len"},
      {"data.shuffle", "true", "--set data.shuffle"},
      {"lora.init_from", "", scene.config.string() + ":4:1"},
      {"lora.rank", "2", "--set lora.rank"},
  };
  for (const Case& c : cases) {
    for (const int ranks : {0, 2}) {
      SCOPED_TRACE(c.setting + " on " + std::to_string(ranks) + " ranks");
      const auto before = scene.tree();
      const Outcome done = scene.train(
          ranks, {"--resume", "--set", "train.steps=4", "--set", c.setting + "=" + c.value});
      expect_one_error(done, 2, c.where);
      EXPECT_EQ(difference(before, scene.tree()), std::vector<std::string>{});
    }
  }
  const auto before = scene.tree();
  expect_one_error(scene.train(2, {"--resume", "--set", "model.path=" + other_model.string()}), 2,
                   "--set model.path", {"digest"});
  EXPECT_EQ(difference(before, scene.tree()), std::vector<std::string>{});
  // What may change: length, rate, layout, micro-batch, intervals.
  const Outcome done =
      scene.train(2, {"--resume", "--set", "train.steps=4", "--set", "optimizer.learning_rate=1e-3",
                      "--set", "train.micro_batch_size=1", "--set", "train.eval_every=1"});
  EXPECT_EQ(done.status, 0) << done.text();
  losses(scene.run, 4);
}

// Without --resume a folder that holds a run is left alone; --resume where there is none begins.
TEST(RunFolder, IsNeverOverwritten) {
  const Scene scene;
  const Outcome begun = scene.train(2, {"--resume", "--set", "train.steps=2"});
  ASSERT_EQ(begun.status, 0) << begun.text();
  const auto before = scene.tree();
  for (const int ranks : {0, 2}) {
    expect_one_error(scene.train(ranks), 2, scene.config.string() + ":9:10",
                     {scene.run.string(), "--resume"});
  }
  EXPECT_EQ(difference(before, scene.tree()), std::vector<std::string>{});
}

}  // namespace
}  // namespace lorashard::test
