// Stopping and going on: bit for bit at the same layout, on the same curve at another.
#include <gtest/gtest.h>

#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"
#include "tests/trainer/golden_run.h"

namespace lorashard::test {
namespace {

// 14 lines of data in batches of 4: epochs end inside batches, and the stop lies inside an epoch.
const std::vector<std::string> kSettings = {"data.shuffle=true", "lora.dropout=0.25",
                                            "train.seed=11"};

TEST(Resume, EqualsTheUninterruptedRunBitForBit) {
  const TempDir dir;
  const RunResult whole = run_golden("llama31", dir / "whole", 2, 1, kSettings);
  run_golden("llama31", dir / "run", 2, 1, kSettings, false, 3);
  EXPECT_EQ(read_json_lines((dir / "run") / "metrics.jsonl").size(), 3u);
  const RunResult resumed = run_golden("llama31", dir / "run", 2, 1, kSettings, true);
  ASSERT_EQ(resumed.metrics.size(), whole.metrics.size());
  for (const char* field : {"step", "loss", "grad_norm", "learning_rate", "tokens"}) {
    EXPECT_EQ(metric_distance(resumed.metrics, whole.metrics, field), 0) << field;
  }
  EXPECT_EQ(adapter_distance(resumed.adapter, whole.adapter), 0);
  EXPECT_EQ(read_text((dir / "run") / "adapter" / "adapter_model.safetensors"),
            read_text((dir / "whole") / "adapter" / "adapter_model.safetensors"));
}

TEST(Resume, ContinuesTheCurveAtAnotherLayout) {
  const TempDir dir;
  const RunResult whole = run_golden("llama31", dir / "whole", 4, 1, kSettings);
  run_golden("llama31", dir / "run", 4, 1, kSettings, false, 4);
  const RunResult resumed = run_golden("llama31", dir / "run", 1, 2, kSettings, true);
  EXPECT_LT(metric_distance(resumed.metrics, whole.metrics, "loss"), 1e-5);
  EXPECT_LT(adapter_distance(resumed.adapter, whole.adapter), 1e-4);
}

TEST(Resume, StartsAnewWhereThereIsNoCheckpoint) {
  const TempDir dir;
  const RunResult whole = run_golden("llama31", dir / "whole", 1, 1, kSettings);
  const RunResult resumed = run_golden("llama31", dir / "run", 1, 1, kSettings, true);
  EXPECT_EQ(adapter_distance(resumed.adapter, whole.adapter), 0);
}

TEST(Resume, PassesOverADamagedCheckpoint) {
  const TempDir dir;
  auto settings = kSettings;
  settings.push_back("checkpoint.every=2");
  const RunResult whole = run_golden("llama31", dir / "whole", 1, 1, settings);
  run_golden("llama31", dir / "run", 1, 1, settings, false, 5);
  const fs::path newest = (dir / "run") / "checkpoints" / "step-000005";
  ASSERT_TRUE(fs::exists(newest));
  fs::resize_file(newest / "trainer_state.safetensors",
                  fs::file_size(newest / "trainer_state.safetensors") - 1);
  const RunResult resumed = run_golden("llama31", dir / "run", 1, 1, settings, true);
  EXPECT_EQ(resumed.metrics.size(), whole.metrics.size());
  EXPECT_EQ(adapter_distance(resumed.adapter, whole.adapter), 0);
}

TEST(Resume, RefusesAnotherRunsSettings) {
  const TempDir dir;
  run_golden("llama31", dir / "run", 1, 1, kSettings, false, 2);
  const auto refused = [&](const std::string& setting, const std::string& names) {
    auto settings = kSettings;
    if (setting.starts_with("train.seed")) settings.pop_back();
    if (setting.starts_with("data.shuffle")) settings.erase(settings.begin());
    settings.push_back(setting);
    expect_error(kExitInput, {names},
                 [&] { run_golden("llama31", dir / "run", 1, 1, settings, true); });
  };
  refused("train.seed=12", "train.seed");
  refused("train.global_batch_size=8", "train.global_batch_size");
  refused("data.train=" + golden("peft/llama2/data.jsonl").string(), "data.train");
  refused("data.shuffle=false", "data");
  refused("lora.init_from=" + golden("peft/llama31_new_config/adapter").string(), "lora");
}

TEST(Run, AFolderThatHoldsARunIsRefused) {
  const TempDir dir;
  run_golden("llama31", dir / "run", 1, 1, {}, false, 1);
  expect_error(kExitInput, {"output.dir", "--resume"},
               [&] { run_golden("llama31", dir / "run", 1, 1); });
}

}  // namespace
}  // namespace lorashard::test
