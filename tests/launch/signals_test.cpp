// Signals of every kind at every moment: none disturbs a run, and a stop signal's status is true.
// Matrices are large here: oneDNN's kernels for small ones leave the stack pointer alone.
#include <signal.h>
#include <unistd.h>

#include <random>

#include "tests/launch/scene.h"
#include "tests/support/tiny_model.h"

namespace lorashard::test {
namespace {

struct LargeRun {
  TempDir dir;
  fs::path run = dir / "run", config = dir / "config.textproto";

  // Steps of `batch` micro-batches of 512 tokens.
  LargeRun(int steps, int batch, int eval_rows = 0) {
    write_tiny_model(dir / "model", {.hidden_size = 512,
                                     .heads = 8,
                                     .kv_heads = 8,
                                     .head_dim = 64,
                                     .intermediate_size = 1024,
                                     .vocab_size = 512,
                                     .max_position_embeddings = 512,
                                     .dtype = DType::F32});
    std::string eval;
    if (eval_rows > 0) {
      write_rows(dir / "eval.jsonl", eval_rows);
      eval = " eval: \"" + (dir / "eval.jsonl").string() + "\"";
    }
    write_rows(dir / "data.jsonl", 16);
    write_file(config, "model { path: \"" + (dir / "model").string() + "\" }\ndata { train: \"" +
                           (dir / "data.jsonl").string() + "\"" + eval +
                           " format: TOKENS seq_len: 512 }\n"
                           "lora { rank: 8 alpha: 16 target_modules: \"all-linear\" }\n"
                           "train { steps: " +
                           std::to_string(steps) +
                           " micro_batch_size: 1 global_batch_size: " + std::to_string(batch) +
                           " eval_every: 2 }\ncheckpoint { every: 1000 }\n"
                           "compute { backend: CPU }\noutput { dir: \"" +
                           run.string() + "\" }\n");
  }
  static void write_rows(const fs::path& path, int rows) {
    std::mt19937 random(5);
    std::string text;
    for (int row = 0; row < rows; ++row) {
      std::string ids;
      for (int i = 0; i < 512; ++i) ids += (i ? "," : "") + std::to_string(random() % 512);
      text += "{\"input_ids\":[" + ids + "]}\n";
    }
    write_file(path, text);
  }

  // TP = ranks under mpirun, or alone with two threads (ranks 0). `through` comes before the
  // program.
  Command train(int ranks, const std::vector<std::string>& through = {}) const {
    Command c;
    if (ranks > 0) c.arguments = {MPIEXEC, "-n", std::to_string(ranks)};
    c.arguments.insert(c.arguments.end(), through.begin(), through.end());
    c.arguments.push_back(kLorashard);
    for (const std::string& a : arguments(ranks)) c.arguments.push_back(a);
    c.environment["XDG_CACHE_HOME"] = (dir / ".cache").string();
    return c;
  }
  // By launch/run_nodes.sh.
  Command launched(int ranks) const {
    Command c;
    c.arguments = {"bash", LORASHARD_SOURCE_DIR "/launch/run_nodes.sh", "-n",
                   std::to_string(ranks)};
    for (const std::string& a : arguments(ranks)) c.arguments.push_back(a);
    c.environment["LORASHARD"] = kLorashard;
    return c;
  }
  std::vector<std::string> arguments(int ranks) const {
    return {"train",
            config.string(),
            "--resume",
            "--set",
            "parallel.tensor=" + std::to_string(std::max(ranks, 1)),
            "--set",
            std::string("compute.threads=") + (ranks > 0 ? "1" : "2")};
  }
  size_t steps_done() const { return json_lines(run / "metrics.jsonl").size(); }
  std::string adapter() const { return read_file(run / "adapter/adapter_model.safetensors"); }
  // That the newest checkpoint is of the last step in metrics.jsonl.
  void expect_checkpoint_of_the_last_step() const {
    char name[32];
    std::snprintf(name, sizeof name, "step-%06zu\n", steps_done());
    EXPECT_EQ(read_file(run / "checkpoints/latest"), name);
    EXPECT_FALSE(fs::exists(run / "adapter"));
  }
};

void sleep_ms(unsigned ms) { ::usleep(ms * 1000); }

bool mpi_can_pass_signals_on() { return std::string(MPIEXEC).find("mpich") == std::string::npos; }

TEST(Signals, OfATimerLeaveTheRunAsItIsBitForBit) {
  for (const int ranks : {0, 2}) {
    SCOPED_TRACE(std::to_string(ranks) + " ranks");
    const LargeRun quiet(6, 2), disturbed(6, 2);
    const Outcome reference = run(quiet.train(ranks));
    ASSERT_EQ(reference.status, 0) << reference.text();
    const std::string log = (disturbed.dir / "signals").string();
    const Outcome done = run(disturbed.train(
        ranks, {"env", std::string("LD_PRELOAD=") + kSignalTimer, "SIGNAL_TIMER_LOG=" + log}));
    ASSERT_EQ(done.status, 0) << done.text();
    EXPECT_EQ(disturbed.adapter(), quiet.adapter());
    std::istringstream lines(read_file(log));
    int processes = 0;
    for (int all = 0, elsewhere = 0; lines >> all >> elsewhere; ++processes) {
      EXPECT_GT(all, 100);
      EXPECT_EQ(elsewhere, 0) << "handlers ran on threads that compute";
    }
    EXPECT_EQ(processes, std::max(ranks, 1));
  }
}

TEST(Signals, TwentyStopsAtRandomMomentsLoseNothing) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  constexpr int kSteps = 32;
  for (const int ranks : {0, 2}) {
    SCOPED_TRACE(std::to_string(ranks) + " ranks");
    const LargeRun whole(kSteps, 1), stopped(kSteps, 1);
    const Outcome reference = run(whole.train(ranks));
    ASSERT_EQ(reference.status, 0) << reference.text();
    for (int stop = 0; stop < (ranks == 0 ? 12 : 8); ++stop) {
      const size_t before = stopped.steps_done();
      Process job(stopped.train(ranks));
      ASSERT_TRUE(job.wait_until([&] { return stopped.steps_done() > before; }))
          << job.wait().text();
      sleep_ms(random() % 100);
      for (const pid_t pid : job.find(kLorashard)) ::kill(pid, SIGTERM);
      const Outcome done = job.wait();
      if (done.status == 0 && fs::exists(stopped.run / "adapter")) break;  // it came too late
      ASSERT_EQ(done.status, 143) << done.text();
      stopped.expect_checkpoint_of_the_last_step();
    }
    const Outcome last = run(stopped.train(ranks));
    ASSERT_EQ(last.status, 0) << last.text();
    EXPECT_EQ(losses(stopped.run, kSteps), losses(whole.run, kSteps));
    EXPECT_EQ(stopped.adapter(), whole.adapter());
  }
}

// Only one rank of a tensor-parallel group is signalled; all leave the step at the same
// micro-batch.
TEST(StopSignals, LeaveALongAccumulationAndTheStepIsMadeAgain) {
  const LargeRun whole(2, 14), stopped(2, 14);
  const Outcome reference = run(whole.train(2));
  ASSERT_EQ(reference.status, 0) << reference.text();
  {
    Process job(stopped.train(2));
    ASSERT_TRUE(job.wait_until([&] { return stopped.steps_done() == 1; })) << job.wait().text();
    sleep_ms(100);
    const std::vector<pid_t> ranks = job.find(kLorashard);
    ASSERT_EQ(ranks.size(), 2u);
    ::kill(ranks[1], SIGTERM);
    const Outcome done = job.wait();
    ASSERT_EQ(done.status, 143) << done.text();
    EXPECT_EQ(stopped.steps_done(), 1u);
    stopped.expect_checkpoint_of_the_last_step();
  }
  const Outcome last = run(stopped.train(2));
  ASSERT_EQ(last.status, 0) << last.text();
  EXPECT_EQ(stopped.adapter(), whole.adapter());
}

TEST(StopSignals, LeaveAnEvaluation) {
  for (const int ranks : {0, 2}) {
    const LargeRun scene(4, 1, 150);
    Process job(scene.train(ranks));
    ASSERT_TRUE(job.wait_until([&] { return scene.steps_done() == 1; })) << job.wait().text();
    sleep_ms(500);  // the evaluation after step 2 takes seconds
    for (const pid_t pid : job.find(kLorashard)) ::kill(pid, SIGINT);
    const Outcome done = job.wait();
    ASSERT_EQ(done.status, 130) << done.text();
    const std::vector<json> lines = json_lines(scene.run / "metrics.jsonl");
    ASSERT_EQ(lines.size(), 2u);
    EXPECT_FALSE(lines.back().contains("eval_loss"));
    scene.expect_checkpoint_of_the_last_step();
  }
}

// Nothing to save: the job ends at once and does not claim a checkpoint.
TEST(StopSignals, BeforeTheFirstStepClaimNoCheckpoint) {
  for (const int ranks : {0, 2}) {
    const LargeRun scene(2, 480);
    Process job(scene.train(ranks));
    ASSERT_TRUE(job.wait_until([&] { return fs::exists(scene.run / "config.textproto"); }))
        << job.wait().text();
    for (const pid_t pid : job.find(kLorashard)) ::kill(pid, SIGTERM);
    expect_one_error(job.wait(), 3, "start-up", {"SIGTERM", "no checkpoint"});
    EXPECT_FALSE(fs::exists(scene.run / "checkpoints"));
  }
}

// A step that goes on for seconds after the signal: a rank sleeps, the other waits for it.
TEST(StopSignals, ThroughTheLauncherLeaveTheStepItsTime) {
  if (!mpi_can_pass_signals_on()) GTEST_SKIP() << "needs Open MPI's mpirun in the path";
  for (const int signal : {SIGTERM, SIGINT}) {
    const LargeRun scene(10000, 1);
    Process job(scene.launched(2));
    ASSERT_TRUE(job.wait_until([&] { return scene.steps_done() >= 2; })) << job.wait().text();
    const std::vector<pid_t> ranks = job.find(kLorashard);
    ASSERT_EQ(ranks.size(), 2u);
    ::kill(ranks[1], SIGSTOP);
    // As a terminal does: to the whole process group, of which mpirun is no part.
    ::kill(-job.pid(), signal);
    sleep_ms(3000);
    EXPECT_TRUE(job.running());
    ::kill(ranks[1], SIGCONT);
    const Outcome done = job.wait();
    EXPECT_EQ(done.status, 128 + signal) << done.text();
    scene.expect_checkpoint_of_the_last_step();
  }
}

// The checkpoint cannot be written: the launcher does not claim it.
TEST(StopSignals, WhoseCheckpointFailsEndWithTheJobsStatus) {
  if (!mpi_can_pass_signals_on()) GTEST_SKIP() << "needs Open MPI's mpirun in the path";
  const LargeRun scene(10000, 1);
  Process job(scene.launched(2));
  ASSERT_TRUE(job.wait_until([&] { return scene.steps_done() >= 1; })) << job.wait().text();
  write_file(scene.run / "checkpoints", "in the way");
  ::kill(job.pid(), SIGTERM);
  expect_one_error(job.wait(), 3, (scene.run / "checkpoints").string());
}

// A fault in the middle of a GEMM, on whichever thread: its handler has a stack of its own.
TEST(Faults, OfAModelThatIsCutShortAreTold) {
  for (const int ranks : {0, 2}) {
    const LargeRun scene(10000, 1);
    Process job(scene.train(ranks));
    ASSERT_TRUE(job.wait_until([&] { return scene.steps_done() >= 2; })) << job.wait().text();
    ASSERT_EQ(::truncate((scene.dir / "model/model.safetensors").c_str(), 4096), 0);
    expect_one_error(job.wait(), 3, "mapped file");
  }
}

// A program of another's with much memory starts ours: its peak is not ours.
TEST(PeakRss, IsOfTheRunAlone) {
  const Scene scene;
  std::vector<char> much(size_t{800} << 20, 1);
  ASSERT_EQ(much[much.size() / 2], 1);
  const Outcome done = scene.train(0);
  ASSERT_EQ(done.status, 0) << done.text();
  EXPECT_LT(json_lines(scene.run / "metrics.jsonl").back().at("peak_rss_mib").get<double>(), 400);
}

// Other commands end by the signal, as any program does.
TEST(StopSignals, EndOtherCommands) {
  const LargeRun scene(2, 1, 2000);
  Command c = scene.train(0);
  c.arguments = {kLorashard, "eval", scene.config.string()};
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGQUIT}) {
    Process job(c);
    sleep_ms(400);
    ASSERT_TRUE(job.running()) << job.wait().text();
    ::kill(job.pid(), signal);
    EXPECT_EQ(job.wait().status, 128 + signal);
  }
}

}  // namespace
}  // namespace lorashard::test
