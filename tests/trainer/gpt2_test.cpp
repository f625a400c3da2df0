// GPT-2 and biases against torch + PEFT in float64 (tests/golden/peft/make_gpt2.py).
#include <gtest/gtest.h>

#include <bit>
#include <cmath>

#include "checkpoint/base_model.h"
#include "checkpoint/export.h"
#include "configs/error.h"
#include "parallel/threads.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"
#include "tests/trainer/golden_run.h"

namespace lorashard::test {
namespace {

std::string digest_of(const BaseModel& base) {
  std::string digest;
  run_thread_ranks(1, [&](Communicator& world) { digest = base.digest(world); });
  return digest;
}

class WithBiases : public testing::TestWithParam<const char*> {};

// fp32 against float64: a few 1e-7 a sum. AdamW divides by the root of the second moment, which
// makes small gradients' errors large in the adapter.
TEST_P(WithBiases, EqualPeftAtEveryLayout) {
  const TempDir dir;
  const std::string name = GetParam();
  const auto expected = read_json(golden("peft/" + name) / "expected.json");
  const auto steps = expected["steps"].get<std::vector<nlohmann::json>>();
  for (const auto& [tensor, data] : {std::pair{1, 1}, {2, 2}, {3, 1}, {4, 1}}) {
    const std::string layout = std::to_string(tensor) + "x" + std::to_string(data);
    const RunResult run =
        run_golden(name, dir / layout, tensor, data, {"train.replica_check_every=1"});
    EXPECT_LT(metric_distance(run.metrics, steps, "loss"), 5e-6) << layout;
    EXPECT_LT(metric_distance(run.metrics, steps, "grad_norm"), 1e-5) << layout;
    EXPECT_NEAR(run.metrics.back()["eval_loss"], expected["eval_loss"], 5e-6) << layout;
    const auto base = BaseModel::open((golden("peft/" + name) / "model").string());
    EXPECT_LT(adapter_distance(run.adapter, read_adapter(golden("peft/" + name) / "final_adapter",
                                                         linear_modules(base->config()))),
              1e-4)
        << layout;
    EXPECT_EQ(run.adapter.config.fan_in_fan_out, base->config().conv1d);
  }
}
INSTANTIATE_TEST_SUITE_P(Cases, WithBiases, testing::Values("gpt2", "gpt2_c_attn", "qwen3_bias"));

TEST(Gpt2, DropoutAndRecomputationFollowTheLayout) {
  const TempDir dir;
  const std::vector<std::string> dropout = {"lora.dropout=0.2"};
  const RunResult one = run_golden("gpt2", dir / "one", 1, 1, dropout);
  const RunResult two = run_golden("gpt2", dir / "two", 2, 1, dropout);
  EXPECT_LT(metric_distance(two.metrics, one.metrics, "loss"), 1e-5);
  EXPECT_LT(adapter_distance(two.adapter, one.adapter), 1e-4);
  for (const std::string level : {"FULL", "MLP"}) {
    const RunResult again =
        run_golden("gpt2", dir / level, 2, 1, {"lora.dropout=0.2", "compute.recompute=" + level});
    EXPECT_EQ(metric_distance(again.metrics, two.metrics, "loss"), 0) << level;
    EXPECT_EQ(adapter_distance(again.adapter, two.adapter), 0) << level;
  }
  const RunResult halves =
      run_golden("gpt2", dir / "halves", 2, 1,
                 {"lora.dropout=0.2", "parallel.overlap=true", "train.micro_batch_size=2"});
  EXPECT_LT(metric_distance(halves.metrics, one.metrics, "loss"), 1e-5);
  // bf16 keeps 8 bits of each activation: errors of 2^-9 that mostly average out.
  const RunResult bf16 =
      run_golden("gpt2", dir / "bf16", 2, 1, {"lora.dropout=0.2", "compute.dtype=BF16"});
  EXPECT_LT(metric_distance(bf16.metrics, one.metrics, "loss"), 1e-2);
}

// Where it was written for 3 ranks and is read by 2, and with the whole stopped and resumed.
TEST(Gpt2, TrainsFromAShardSetAndResumes) {
  const TempDir dir;
  const auto base = BaseModel::open((golden("peft/gpt2") / "model").string());
  run_thread_ranks(2, [&](Communicator& world) {
    write_base_shards(*base, 3, (dir / "shards").string(), world);
  });
  const auto shards = BaseModel::open((dir / "shards").string());
  EXPECT_EQ(digest_of(*shards), digest_of(*base));
  const std::vector<std::string> settings = {"model.path=" + (dir / "shards").string(),
                                             "checkpoint.every=1"};
  const RunResult whole = run_golden("gpt2", dir / "whole", 2, 1);
  run_golden("gpt2", dir / "cut", 2, 1, settings, false, 4);
  const RunResult cut = run_golden("gpt2", dir / "cut", 2, 1, settings, true);
  EXPECT_EQ(adapter_distance(cut.adapter, whole.adapter), 0);
}

// Merged weights lie as the base's do, (in, out).
TEST(Gpt2, ExportsMergedWeightsAsConv1DHasThem) {
  const TempDir dir;
  const auto base = BaseModel::open((golden("peft/gpt2") / "model").string());
  const Adapter adapter =
      read_adapter(golden("peft/gpt2") / "adapter", linear_modules(base->config()));
  ExportOptions options;
  options.dtype = DType::F32;
  export_merged(*base, adapter, (dir / "merged").string(), options);
  const auto merged = BaseModel::open((dir / "merged").string());
  for (const AdapterModule& m : adapter.modules) {
    const WeightSlice w = merged->whole(m.name + ".weight"), from = base->whole(m.name + ".weight");
    ASSERT_EQ(w.matrix.rows, m.in_features);
    for (const auto& [in, out] : {std::pair<int64_t, int64_t>{0, 1},
                                  {m.in_features - 1, m.out_features - 1},
                                  {5, m.out_features / 2}}) {
      const auto bits = uint32_t(*reinterpret_cast<const uint16_t*>(from.matrix.at(in, out))) << 16;
      double sum = std::bit_cast<float>(bits);
      for (int64_t r = 0; r < m.rank; ++r)
        sum += adapter.scaling(m) * m.b[size_t(out * m.rank + r)] *
               m.a[size_t(r * m.in_features + in)];
      EXPECT_NEAR(*reinterpret_cast<const float*>(w.matrix.at(in, out)), sum, 1e-6) << m.name;
    }
  }
}

TEST(Gpt2, AdaptsCAttnUnlessToldOtherwise) {
  const TempDir dir;
  const std::vector<std::string> settings = {"lora.init_from=", "train.steps=1"};
  const RunResult run = run_golden("gpt2", dir / "run", 1, 1, settings);
  ASSERT_EQ(run.adapter.modules.size(), 2u);
  EXPECT_EQ(run.adapter.modules[1].name, "transformer.h.1.attn.c_attn");
  EXPECT_EQ(run.adapter.config.target_modules, std::vector<std::string>{"c_attn"});
  EXPECT_NE(read_text(dir / "run" / "config.textproto").find("target_modules: \"c_attn\""),
            std::string::npos);
}

TEST(Gpt2, RefusesSequencesBeyondItsPositions) {
  const TempDir dir;
  try {
    run_golden("gpt2", dir / "run", 1, 1, {"data.seq_len=41"});
    FAIL() << "41 positions of 40";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("data.seq_len"), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find("n_positions"), std::string::npos) << e.what();
  }
}

// A trained bias of c_attn has three blocks on a rank, as its B has.
TEST(Gpt2, TrainsBiasesOfAdaptedModulesAtEveryLayout) {
  const TempDir dir;
  const std::vector<std::string> settings = {"lora.init_from=", "lora.target_modules=all-linear",
                                             "lora.bias=lora_only"};
  const RunResult one = run_golden("gpt2", dir / "one", 1, 1, settings);
  ASSERT_EQ(one.adapter.trained.size(), 8u);
  for (const int tensor : {2, 3}) {
    const RunResult run = run_golden("gpt2", dir / std::to_string(tensor), tensor, 1, settings);
    EXPECT_LT(metric_distance(run.metrics, one.metrics, "loss"), 1e-5) << tensor;
    EXPECT_LT(metric_distance(run.metrics, one.metrics, "grad_norm"), 1e-5) << tensor;
  }
}

TEST(Gpt2, RefusesDoraAndBiasesOfNorms) {
  const TempDir dir;
  expect_error(kExitInput, {"use_dora", "transposed"}, [&] {
    run_golden("gpt2", dir / "dora", 1, 1, {"lora.init_from=", "lora.use_dora=true"});
  });
  expect_error(kExitInput, {"bias", "ln_1.bias", "lora_only"}, [&] {
    run_golden("gpt2", dir / "bias", 1, 1, {"lora.init_from=", "lora.bias=all"});
  });
}

}  // namespace
}  // namespace lorashard::test
