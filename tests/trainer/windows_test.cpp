// Sliding windows and Gemma 3 against torch + PEFT in float64 (tests/golden/peft/make_windows.py).
#include <gtest/gtest.h>

#include <cstdlib>

#include "tests/support/temp_dir.h"
#include "tests/trainer/golden_run.h"

namespace lorashard::test {
namespace {

const char* const kCases[] = {"mistral_window", "qwen3_window", "gemma3", "gemma3_new_config"};

class Windows : public testing::TestWithParam<const char*> {};

// Ours is fp32 against float64: 1e-6 after eight steps, and a factor of ten for other processors.
// AdamW divides by the root of the second moment, which makes small gradients' errors large.
TEST_P(Windows, EqualPeftAtEveryLayout) {
  const TempDir dir;
  const std::string name = GetParam();
  const auto expected = read_json(golden("peft/" + name) / "expected.json");
  const auto steps = expected["steps"].get<std::vector<nlohmann::json>>();
  for (const auto& [tensor, data] : {std::pair{1, 1}, {2, 2}, {3, 1}, {4, 1}}) {
    const std::string layout = std::to_string(tensor) + "x" + std::to_string(data);
    const RunResult run = run_golden(name, dir / layout, tensor, data);
    ASSERT_EQ(run.metrics.size(), steps.size());
    EXPECT_LT(metric_distance(run.metrics, steps, "loss"), 1e-5) << layout;
    EXPECT_LT(metric_distance(run.metrics, steps, "grad_norm"), 1e-5) << layout;
    EXPECT_NEAR(run.metrics.back()["eval_loss"], expected["eval_loss"], 1e-5) << layout;
    std::vector<LinearModule> modules;
    for (const AdapterModule& m : run.adapter.modules)
      modules.push_back({m.name, 0, m.out_features, m.in_features, Split::None});
    EXPECT_LT(adapter_distance(run.adapter,
                               read_adapter(golden("peft/" + name) / "final_adapter", modules)),
              1e-4)
        << layout;
  }
}

// Recomputation repeats the same arithmetic, post-norms and both ropes included.
TEST_P(Windows, RecomputationChangesNoBit) {
  const TempDir dir;
  const std::string name = GetParam();
  const std::vector<std::string> settings = {"lora.dropout=0.2"};
  const RunResult kept = run_golden(name, dir / "NONE", 2, 1, settings);
  for (const std::string level : {"FULL", "MLP"}) {
    auto changed = settings;
    changed.push_back("compute.recompute=" + level);
    const RunResult again = run_golden(name, dir / level, 2, 1, changed);
    EXPECT_EQ(metric_distance(kept.metrics, again.metrics, "loss"), 0) << level;
    EXPECT_EQ(adapter_distance(kept.adapter, again.adapter), 0) << level;
  }
}
INSTANTIATE_TEST_SUITE_P(Cases, Windows, testing::ValuesIn(kCases));

TEST(Gemma3, HalvesOfAMicroBatchInFlightGiveTheSameLosses) {
  const TempDir dir;
  const auto run = [&](const std::string& overlap) {
    return run_golden("gemma3", dir / overlap, 2, 1,
                      {"train.micro_batch_size=2", "parallel.overlap=" + overlap});
  };
  const RunResult whole = run("false"), halves = run("true");
  EXPECT_LT(metric_distance(whole.metrics, halves.metrics, "loss"), 1e-5);
  EXPECT_LT(adapter_distance(whole.adapter, halves.adapter), 1e-4);
}

// As Bf16.FollowsFp32 in parity_test.cpp.
TEST(Gemma3, Bf16FollowsFp32) {
  const TempDir dir;
  const RunResult fp32 = run_golden("gemma3", dir / "32", 1, 1);
  const RunResult bf16 = run_golden("gemma3", dir / "16", 2, 1, {"compute.dtype=BF16"});
  EXPECT_LT(metric_distance(bf16.metrics, fp32.metrics, "loss"), 1e-2);
  EXPECT_LT(metric_distance(bf16.metrics, fp32.metrics, "grad_norm"), 5e-2);
}

// Only layer 2 is adapted: the layers below keep nothing and work in its memory.
TEST(Gemma3, LayersBelowTheLowestAdaptedOneKeepNothing) {
  const TempDir dir;
  const std::vector<std::string> settings = {
      "lora.init_from=\"\"", "lora.target_modules=\".*layers.2.*(q_proj|down_proj)\""};
  const RunResult one = run_golden("gemma3", dir / "one", 1, 1, settings);
  const RunResult two = run_golden("gemma3", dir / "two", 2, 1, settings);
  EXPECT_EQ(one.adapter.modules.size(), 2u);
  EXPECT_LT(metric_distance(one.metrics, two.metrics, "loss"), 1e-5);
  EXPECT_LT(metric_distance(one.metrics, two.metrics, "grad_norm"), 1e-4);
}

}  // namespace
}  // namespace lorashard::test
