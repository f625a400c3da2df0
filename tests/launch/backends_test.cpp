// One run on two backends: the same losses, and checkpoints and adapters that either continues.
// Programs without the CUDA backend, or without a device, have only one.
#include "kernels/stream.h"
#include "tests/launch/scene.h"

namespace lorashard::test {
namespace {

#define NEEDS_CUDA() \
  if (cuda_devices() == 0) GTEST_SKIP() << "no CUDA device, real or simulated, answers here"

std::vector<std::string> on(const std::string& backend, std::vector<std::string> more = {}) {
  more.insert(more.end(), {"--set", "compute.backend=" + backend});
  return more;
}

double largest_difference(const std::vector<double>& x, const std::vector<double>& y) {
  EXPECT_EQ(x.size(), y.size());
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) worst = std::max(worst, std::abs(x[i] - y[i]));
  return worst;
}

TEST(Backends, ACheckpointOfOneContinuesOnTheOther) {
  NEEDS_CUDA();
  for (const auto& [first, second] :
       {std::pair<std::string, std::string>{"CPU", "CUDA"}, {"CUDA", "CPU"}}) {
    const Scene whole, mixed;
    const auto half = [&](const std::string& backend, const char* steps, bool resume) {
      std::vector<std::string> arguments =
          on(backend, {"--set", "parallel.tensor=2", "--set", std::string("train.steps=") + steps,
                       "--set", "checkpoint.every=4", "--set", "schedule.kind=CONSTANT", "--set",
                       "schedule.warmup_steps=0"});
      if (resume) arguments.push_back("--resume");
      return mixed.train(2, arguments);
    };
    const Outcome reference =
        whole.train(2, on("CPU", {"--set", "parallel.tensor=2", "--set", "schedule.kind=CONSTANT",
                                  "--set", "schedule.warmup_steps=0"}));
    ASSERT_EQ(reference.status, 0) << reference.text();
    Outcome done = half(first, "4", false);
    ASSERT_EQ(done.status, 0) << done.text();
    done = half(second, "8", true);
    ASSERT_EQ(done.status, 0) << done.text();
    EXPECT_EQ(lines_with(done.out, "resumed at step 4").size(), 1u) << done.out;
    EXPECT_EQ(lines_with(done.out, "backend " + second).size(), 1u) << done.out;
    // The backends' fp32 GEMMs add up in different orders: 1e-7 a sum.
    EXPECT_LT(largest_difference(losses(whole.run, 8), losses(mixed.run, 8)), 1e-5) << first;
    // The adapter that one wrote, evaluated on the other.
    const auto evaluated = [&](const std::string& backend) {
      const Outcome o = run(mixed.command(
          0,
          mixed.configured("eval", on(backend, {"--adapter", (mixed.run / "adapter").string()}))));
      EXPECT_EQ(o.status, 0) << o.text();
      const size_t at = o.out.find("loss ");
      return at == std::string::npos ? 0.0 : std::stod(o.out.substr(at + 5));
    };
    EXPECT_NEAR(evaluated("CPU"), evaluated("CUDA"), 1e-5);
  }
}

// The model of the quickstart in bf16 on 2 x 2 ranks.
TEST(Backends, TheQuickstartModelGivesTheSameLosses) {
  NEEDS_CUDA();
  const TempDir dir;
  const fs::path source = LORASHARD_SOURCE_DIR, quickstart = source / "configs/quickstart";
  const Scene scene;  // for its command alone
  std::map<std::string, std::vector<double>> curve;
  for (const std::string backend : {"CPU", "CUDA"}) {
    const fs::path folder = dir / backend;
    const Outcome done = test::run(scene.command(
        4, on(backend, {"train", (quickstart / "quickstart.textproto").string(),
                        "--set", "model.path=" + (quickstart / "base_model").string(),
                        "--set", "data.train=" + (quickstart / "fortunes.train.jsonl").string(),
                        "--set", "data.eval=" + (quickstart / "fortunes.eval.jsonl").string(),
                        "--set", "output.dir=" + folder.string(),
                        "--set", "train.steps=3",
                        "--set", "train.global_batch_size=4",
                        "--set", "train.micro_batch_size=2",
                        "--set", "data.seq_len=32",
                        "--set", "parallel.tensor=2",
                        "--set", "compute.dtype=BF16",
                        "--set", "train.eval_every=0",
                        "--set", "schedule.warmup_steps=0",
                        "--set", "compute.threads=1"})));
    ASSERT_EQ(done.status, 0) << done.text();
    curve[backend] = losses(folder, 3);
  }
  // Both round activations to bf16, in other places: 2^-9 of a loss of 6, which mostly averages
  // out.
  EXPECT_LT(largest_difference(curve["CPU"], curve["CUDA"]), 2e-2);
}

// Nobody takes a simulated device for a real one.
TEST(Backends, ALineNamesTheDevice) {
  NEEDS_CUDA();
  const Scene scene;
  const Outcome done = scene.train(0, on("CUDA", {"--set", "train.steps=1"}));
  ASSERT_EQ(done.status, 0) << done.text();
  EXPECT_EQ(lines_with(done.out, "backend "),
            std::vector<std::string>{"backend CUDA device 0 (" + cuda_device_name(0) +
                                     "), one for each of 1 rank(s)"});
  EXPECT_EQ(cuda_device_name(0) == "simulated", cuda_is_simulated());
}

}  // namespace
}  // namespace lorashard::test
