// Qwen3-MoE against torch + PEFT (tests/golden/peft/make_moe.py, in float64) and against itself.
#include <gtest/gtest.h>

#include <cstdlib>

#include "checkpoint/base_model.h"
#include "tests/support/temp_dir.h"
#include "tests/trainer/golden_run.h"

namespace lorashard::test {
namespace {

const char* const kCases[] = {"qwen3_moe", "qwen3_moe_dense"};

class Moe : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (std::getenv("LORASHARD_TEST_BACKEND")) GTEST_SKIP() << "the CUDA backend refuses experts";
  }
};

// The reference runs GEMMs in float64, norms and softmax in fp32; ours are fp32 throughout: 1e-7 a
// sum, a few 1e-6 after eight steps.
TEST_P(Moe, LossesNormsAndAdapterEqualPeftAtEveryLayout) {
  const TempDir dir;
  const std::string name = GetParam();
  const auto expected = read_json(golden("peft/" + name) / "expected.json");
  const auto steps = expected["steps"].get<std::vector<nlohmann::json>>();
  const auto base = BaseModel::open((golden("peft/" + name) / "model").string());
  const Adapter final_adapter =
      read_adapter(golden("peft/" + name) / "final_adapter", linear_modules(base->config()));
  for (const auto& [tensor, data] : {std::pair{1, 1}, {2, 2}, {3, 1}, {4, 1}}) {
    const std::string layout = std::to_string(tensor) + "x" + std::to_string(data);
    const RunResult run = run_golden(name, dir / layout, tensor, data);
    EXPECT_LT(metric_distance(run.metrics, steps, "loss"), 1e-5) << layout;
    EXPECT_LT(metric_distance(run.metrics, steps, "grad_norm"), 1e-5) << layout;
    EXPECT_NEAR(run.metrics.back()["eval_loss"], expected["eval_loss"], 5e-5) << layout;
    // AdamW divides by the root of the second moment, which makes small gradients' errors large.
    EXPECT_LT(adapter_distance(run.adapter, final_adapter), 1e-4) << layout;
  }
}

TEST_P(Moe, RecomputationAndResumeChangeNoBit) {
  const TempDir dir;
  const std::string name = GetParam();
  const RunResult kept = run_golden(name, dir / "none", 2, 1, {"compute.recompute=NONE"});
  for (const std::string level : {"MLP", "FULL"}) {
    const RunResult again = run_golden(name, dir / level, 2, 1, {"compute.recompute=" + level});
    EXPECT_EQ(metric_distance(kept.metrics, again.metrics, "loss"), 0) << level;
    EXPECT_EQ(adapter_distance(kept.adapter, again.adapter), 0) << level;
  }
  run_golden(name, dir / "resumed", 2, 1, {"compute.recompute=NONE"}, false, 3);
  const RunResult resumed =
      run_golden(name, dir / "resumed", 2, 1, {"compute.recompute=NONE"}, true);
  EXPECT_EQ(adapter_distance(kept.adapter, resumed.adapter), 0);
}

TEST_P(Moe, HalvesInFlightAndBf16Follow) {
  const TempDir dir;
  const std::string name = GetParam();
  const RunResult whole = run_golden(name, dir / "whole", 2, 1, {"parallel.overlap=false"});
  const RunResult halves = run_golden(name, dir / "halves", 2, 1, {"parallel.overlap=true"});
  EXPECT_LT(metric_distance(whole.metrics, halves.metrics, "loss"), 1e-5);
  EXPECT_LT(adapter_distance(whole.adapter, halves.adapter), 1e-4);
  // Where two experts are nearly as probable, bf16 may choose the other: then a token differs.
  const RunResult bf16 = run_golden(name, dir / "bf16", 2, 1, {"compute.dtype=BF16"});
  EXPECT_LT(metric_distance(bf16.metrics, whole.metrics, "loss"), 2e-2);
  EXPECT_GT(metric_distance(bf16.metrics, whole.metrics, "loss"), 0) << "bf16 was not used";
}
INSTANTIATE_TEST_SUITE_P(Cases, Moe, testing::ValuesIn(kCases));

// From nothing: the settings alone, as they are converted from a family's old names.
TEST(MoeSettings, ChooseParametersAsPeftDoes) {
  if (std::getenv("LORASHARD_TEST_BACKEND")) GTEST_SKIP() << "the CUDA backend refuses experts";
  const TempDir dir;
  const RunResult run = run_golden("qwen3_moe", dir / "run", 2, 1,
                                   {"lora.init_from=", "lora.rank=2", "lora.alpha=4",
                                    "train.steps=2", "lora.target_parameters=[\"down_proj\"]"});
  ASSERT_EQ(run.adapter.modules.size(), 2u);
  EXPECT_EQ(run.adapter.modules[0].name, "model.layers.0.mlp.experts.down_proj");
  EXPECT_EQ(run.adapter.modules[0].rank, 12);
  EXPECT_EQ(run.adapter.modules[0].experts, 6);
}

}  // namespace
}  // namespace lorashard::test
