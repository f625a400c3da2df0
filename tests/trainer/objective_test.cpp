// Runs by epochs and direct preference optimization against torch + PEFT (+ TRL's formula) in
// float64, at several layouts.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <fstream>

#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"
#include "tests/trainer/golden_run.h"

namespace lorashard::test {
namespace {

struct Layout {
  int tensor, data;
  std::vector<std::string> settings;
};

nlohmann::json expected(const std::string& name) {
  return read_json(golden("peft/" + name) / "expected.json");
}

void expect_adapter(const std::string& name, const RunResult& run) {
  std::vector<LinearModule> modules;
  for (const AdapterModule& m : run.adapter.modules) {
    modules.push_back({m.name, 0, m.out_features, m.in_features, Split::None});
  }
  // AdamW divides by the root of the second moment, which makes small gradients' errors large.
  const Adapter want = read_adapter(golden("peft/" + name) / "final_adapter", modules);
  EXPECT_LT(adapter_distance(run.adapter, want), 1e-4);
}

// 14 rows in batches of 4: the last step of an epoch has two rows, so that at four data-parallel
// ranks two have none. The run ends in the middle of its third epoch. Our fp32 against float64:
// sums of a few hundred terms, 1e-6 after ten steps.
TEST(Epochs, EqualPeftAtEveryLayout) {
  const TempDir dir;
  const auto want = expected("epochs");
  const auto steps = want["steps"].get<std::vector<nlohmann::json>>();
  const std::vector<Layout> layouts{{1, 1, {"train.micro_batch_size=4"}},
                                    {2, 2, {}},
                                    {3, 1, {"train.micro_batch_size=2"}},
                                    {1, 4, {}}};
  for (const Layout& l : layouts) {
    const std::string name = std::to_string(l.tensor) + "x" + std::to_string(l.data);
    SCOPED_TRACE(name);
    const RunResult run = run_case("epochs", dir / name, l.tensor, l.data, l.settings);
    ASSERT_EQ(run.metrics.size(), 10u);
    EXPECT_LT(metric_distance(run.metrics, steps, "loss"), 5e-6);
    EXPECT_LT(metric_distance(run.metrics, steps, "grad_norm"), 5e-6);
    EXPECT_LT(metric_distance(run.metrics, steps, "learning_rate"), 1e-12);
    EXPECT_LT(metric_distance(run.metrics, steps, "epoch"), 1e-12);
    for (size_t i = 0; i < steps.size(); ++i) {
      EXPECT_EQ(run.metrics[i]["counted_tokens"], steps[i]["counted_labels"]);
    }
    expect_adapter("epochs", run);
  }
}

const std::vector<std::string> kShuffled = {"data.shuffle=true", "lora.dropout=0.25",
                                            "train.seed=11"};

// Stopped in the middle of an epoch.
TEST(Epochs, ResumeOnTheSameCurve) {
  const TempDir dir;
  const RunResult whole = run_case("epochs", dir / "whole", 1, 2, kShuffled);
  for (const int stop : {4, 6}) {  // at the end of an epoch, and within one
    const fs::path out = dir / ("run" + std::to_string(stop));
    run_case("epochs", out, 1, 2, kShuffled, false, stop);
    const RunResult resumed = run_case("epochs", out, 1, 2, kShuffled, true);
    ASSERT_EQ(resumed.metrics.size(), whole.metrics.size());
    for (const char* field : {"step", "epoch", "loss", "grad_norm", "learning_rate", "tokens"}) {
      EXPECT_EQ(metric_distance(resumed.metrics, whole.metrics, field), 0) << field;
    }
    EXPECT_EQ(adapter_distance(resumed.adapter, whole.adapter), 0);
  }
  run_case("epochs", dir / "other", 2, 1, kShuffled, false, 6);
  const RunResult other = run_case("epochs", dir / "other", 1, 4, kShuffled, true);
  EXPECT_LT(metric_distance(other.metrics, whole.metrics, "loss"), 1e-5);
  EXPECT_LT(adapter_distance(other.adapter, whole.adapter), 1e-4);
}

TEST(Epochs, MoreOfThemContinueAFinishedRun) {
  const TempDir dir;
  const auto with = [](const std::string& setting) {
    // In place of the case's own: a setting is overridden once.
    std::vector<std::string> all = kShuffled;
    all.push_back(setting);
    return all;
  };
  const fs::path out = dir / "run";
  run_case("epochs", out, 1, 1, with("train.epochs=1"));
  EXPECT_EQ(read_json_lines(out / "metrics.jsonl").size(), 4u);
  run_case("epochs", out, 1, 1, with("train.epochs=1"), true);  // finished
  EXPECT_EQ(run_case("epochs", out, 1, 1, with("train.epochs=2"), true).metrics.size(), 8u);
  expect_error(kExitInput, {"train.epochs is 1 (4 steps), the run has made 8"},
               [&] { run_case("epochs", out, 1, 1, with("train.epochs=1"), true); });
  // Another batch: the rest of the epoch is cut anew, and nothing is visited twice.
  run_case("epochs", dir / "batch", 1, 1, with("train.epochs=1"), false, 1);
  auto settings = with("train.epochs=1");
  settings.push_back("train.global_batch_size=3");
  expect_error(kExitInput, {"train.global_batch_size 4 -> 3"},
               [&] { run_case("epochs", dir / "batch", 1, 1, settings, true); });
  const RunResult rest = run_case("epochs", dir / "batch", 1, 1, settings, true, 0, true);
  ASSERT_EQ(rest.metrics.size(), 5u);  // 4, 3, 3, 3, 1 rows
  EXPECT_EQ(rest.metrics.back()["epoch"], 1.0);
}

// Fewer rows than a batch has.
TEST(Epochs, OfLessDataThanABatchAreOneStepEach) {
  const TempDir dir;
  const fs::path few = dir / "few.jsonl";
  std::ofstream(few) << "{\"input_ids\":[5,6,7]}\n{\"input_ids\":[8,9,10,11]}\n";
  const RunResult run =
      run_case("epochs", dir / "run", 1, 4, {"data.train=" + few.string(), "train.epochs=3"});
  ASSERT_EQ(run.metrics.size(), 3u);
  EXPECT_EQ(run.metrics[1]["counted_tokens"], 5);
  EXPECT_EQ(run.metrics[1]["epoch"], 2.0);
}

const char* const kPairFields[] = {"rewards_chosen", "rewards_rejected", "rewards_margin",
                                   "logps_chosen", "logps_rejected"};

// Log-probabilities of about -80 are sums in fp32, 1e-7 of them off, and rewards and the loss are
// differences of such sums: 1e-5 in absolute terms.
void expect_pairs(const nlohmann::json& line, const nlohmann::json& want,
                  const std::string& prefix) {
  for (const std::string field : kPairFields) {
    EXPECT_NEAR(line[prefix + field], double(want[field]), 3e-5) << field;
  }
  EXPECT_DOUBLE_EQ(line[prefix + "rewards_accuracy"], want["rewards_accuracy"]);
}

TEST(Dpo, EqualsTrlAtEveryLayout) {
  const TempDir dir;
  const auto want = expected("dpo");
  const auto steps = want["steps"].get<std::vector<nlohmann::json>>();
  const std::vector<Layout> layouts{
      {1, 1, {"train.micro_batch_size=4"}},
      {2, 2, {"train.micro_batch_size=2", "parallel.overlap=true", "compute.recompute=FULL"}},
      {3, 1, {"compute.recompute=MLP"}},
      {1, 4, {}}};
  for (const Layout& l : layouts) {
    const std::string name = std::to_string(l.tensor) + "x" + std::to_string(l.data);
    SCOPED_TRACE(name);
    const RunResult run = run_case("dpo", dir / name, l.tensor, l.data, l.settings);
    ASSERT_EQ(run.metrics.size(), steps.size());
    EXPECT_LT(metric_distance(run.metrics, steps, "loss"), 1e-5);
    EXPECT_LT(metric_distance(run.metrics, steps, "grad_norm"), 1e-5);
    for (size_t i = 0; i < steps.size(); ++i) expect_pairs(run.metrics[i], steps[i], "");
    EXPECT_NEAR(run.metrics.back()["eval_loss"], double(want["eval"]["loss"]), 1e-5);
    expect_pairs(run.metrics.back(), want["eval"], "eval_");
    expect_adapter("dpo", run);
  }
}

// Without an adapter's effect policy and reference are one model: log 2, to the bit.
TEST(Dpo, BeginsAtLog2AndDropoutIsThePolicysAlone) {
  const TempDir dir;
  const auto settings = [](const std::string& dropout) {
    return std::vector<std::string>{"lora.init_from=", "lora.target_modules=all-linear",
                                    "lora.dropout=" + dropout, "train.micro_batch_size=2"};
  };
  const RunResult run = run_case("dpo", dir / "run", 1, 1, settings("0.3"));
  EXPECT_DOUBLE_EQ(run.metrics[0]["loss"], std::log(2.0));
  EXPECT_EQ(run.metrics[0]["rewards_margin"], 0.0);
  EXPECT_GT(run.metrics[0]["grad_norm"], 0.0);
  const RunResult none = run_case("dpo", dir / "none", 1, 1, settings("0"));
  EXPECT_DOUBLE_EQ(run.metrics[0]["logps_chosen"], none.metrics[0]["logps_chosen"]);
  EXPECT_NE(run.metrics[3]["loss"], none.metrics[3]["loss"]);
  const RunResult split = run_case("dpo", dir / "split", 3, 2, settings("0.3"));
  EXPECT_LT(metric_distance(split.metrics, run.metrics, "loss"), 1e-5);
}

TEST(Dpo, RecomputationChangesNoBitAndResumeGoesOn) {
  const TempDir dir;
  const std::vector<std::string> settings = {"lora.dropout=0.2", "data.shuffle=true"};
  const RunResult kept = run_case("dpo", dir / "kept", 1, 2, settings);
  auto full = settings;
  full.push_back("compute.recompute=FULL");
  run_case("dpo", dir / "run", 1, 2, full, false, 3);
  const RunResult resumed = run_case("dpo", dir / "run", 1, 2, full, true);
  for (const char* field : {"loss", "grad_norm", "rewards_chosen", "logps_rejected"}) {
    EXPECT_EQ(metric_distance(resumed.metrics, kept.metrics, field), 0) << field;
  }
  EXPECT_EQ(adapter_distance(resumed.adapter, kept.adapter), 0);
}

// bf16 keeps 8 bits: log-probabilities of 80 are off by some tenths, policy and reference alike.
TEST(Dpo, Bf16FollowsFp32) {
  const TempDir dir;
  const RunResult fp32 = run_case("dpo", dir / "32", 1, 1);
  const RunResult bf16 = run_case("dpo", dir / "16", 2, 1, {"compute.dtype=BF16"});
  EXPECT_LT(metric_distance(bf16.metrics, fp32.metrics, "loss"), 0.1);
  EXPECT_GT(metric_distance(bf16.metrics, fp32.metrics, "loss"), 0) << "bf16 was not used";
}

}  // namespace
}  // namespace lorashard::test
