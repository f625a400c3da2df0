// Full fine-tuning against torch in float64 (tests/golden/full.json), at several layouts, stopped
// and continued.
#include <gtest/gtest.h>

#include <cmath>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "checkpoint/base_model.h"
#include "kernels/elementwise.h"
#include "parallel/threads.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"
#include "tests/trainer/golden_run.h"
#include "trainer/run/train.h"

namespace lorashard::test {
namespace {

using Json = nlohmann::json;
using Weights = std::map<std::string, std::vector<float>>;

Json case_of(const std::string& name) {
  const Json all = read_json(golden("full.json"));
  for (const Json& c : all["cases"])
    if (c["case"] == name) return c;
  throw std::runtime_error("no case " + name);
}

struct FullResult {
  std::vector<Json> metrics;
  Weights weights;  // RUN/model
};

Weights read_model(const fs::path& dir) {
  Weights weights;
  const auto model = BaseModel::open(dir.string());
  for (const auto& t : model->tensors()) {
    const WeightSlice whole = model->whole(t.name);
    EXPECT_EQ(t.dtype, DType::F32) << t.name;
    const auto* values = static_cast<const float*>(whole.matrix.data);
    weights[t.name].assign(values, values + t.rows() * t.cols());
  }
  return weights;
}

FullResult run_full(const std::string& name, const fs::path& out, int tensor, int data,
                    std::vector<std::string> settings = {}, bool resume = false,
                    int stop_after = 0) {
  const fs::path dir = golden("peft/" + name), config_file = out.string() + ".textproto";
  const Json expected = case_of(name);
  // The case's schedule and batches, without what is LoRA's.
  std::string text = read_text(dir / "config.textproto"), kept;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);)
    if (!line.starts_with("lora ") && !line.starts_with("optimizer ")) kept += line + "\n";
  std::ofstream(config_file) << kept;
  const auto number = [&](const char* key) { return expected[key].dump(); };
  std::vector<std::string> all = {
      "train.method=FULL",
      "train.model_dtype=FP32",
      "train.replica_check_every=1",
      "optimizer.learning_rate=" + number("learning_rate"),
      "optimizer.weight_decay=" + number("weight_decay"),
      "optimizer.decay_norms_and_biases=" + number("decay_norms_and_biases"),
      "model.path=" + (dir / "model").string(),
      "data.train=" + (dir / "data.jsonl").string(),
      "data.eval=" + (dir / "eval.jsonl").string(),
      "output.dir=" + out.string(),
      "compute.threads=1",
      "parallel.tensor=" + std::to_string(tensor)};
  if (const char* backend = std::getenv("LORASHARD_TEST_BACKEND"))
    all.push_back(std::string("compute.backend=") + backend);
  for (const std::string& s : settings) {
    std::erase_if(
        all, [&](const std::string& a) { return a.starts_with(s.substr(0, s.find('=') + 1)); });
    all.push_back(s);
  }
  run_thread_ranks(tensor * data, [&](Communicator& world) {
    const Config config = load_config(config_file.string(), all);
    int calls = 0;
    TrainOptions options;
    options.resume = resume;
    options.stop_signal = [&] { return stop_after > 0 && ++calls >= stop_after ? SIGTERM : 0; };
    train(config, Ranks{world, tensor * data, world.rank()}, options);
  });
  FullResult result{read_json_lines(out / "metrics.jsonl"), {}};
  if (stop_after == 0) result.weights = read_model(out / "model");
  return result;
}

double norm_of(const std::vector<float>& w) {
  double sum = 0;
  for (const float v : w) sum += double(v) * v;
  return std::sqrt(sum);
}

// Largest |x - y| / |y| over the tensors.
double distance(const Weights& x, const Weights& y) {
  EXPECT_EQ(x.size(), y.size());
  double worst = 0;
  for (const auto& [name, w] : x) {
    const std::vector<float>& other = y.at(name);
    std::vector<float> difference(w.size());
    for (size_t i = 0; i < w.size(); ++i) difference[i] = w[i] - other[i];
    worst = std::max(worst, norm_of(difference) / norm_of(other));
  }
  return worst;
}

// The same by the projections of make_full.py.
double distance(const Weights& x, const Json& tensors) {
  EXPECT_EQ(x.size(), tensors.size());
  double worst = 0;
  for (const auto& [name, w] : x) {
    const Json& theirs = tensors.at(name);
    const auto projections = theirs["projections"].get<std::vector<double>>();
    double squares = 0;
    for (size_t k = 0; k < projections.size(); ++k) {
      double sum = 0;
      for (size_t i = 0; i < w.size(); ++i) sum += w[i] * std::cos(double((k + 1) * (i + 1)) / 3);
      squares += std::pow(sum - projections[k], 2);
    }
    const double found =
        std::sqrt(2 * squares / double(projections.size())) / theirs["norm"].get<double>();
    // Softmax ignores what is added to all scores of a query. So the gradient of a key's bias
    // cancels to next to nothing where rope hardly turns, and AdamW makes steps of its rounding.
    EXPECT_LT(found, name.ends_with("k_proj.bias") ? 1e-4 : 1e-5) << name;
    if (name.ends_with("k_proj.bias")) continue;
    worst = std::max(worst, found);
  }
  return worst;
}

const char* const kCases[] = {
    "llama2", "mistral",           "qwen2",       "qwen3", "llama_tied_bias",
    "gemma3", "gemma3_new_config", "qwen3_window"};

class Full : public testing::TestWithParam<const char*> {};

// fp32 GEMMs round at 6e-8 and eight steps of AdamW divide by the root of small moments; torch
// computes in float64.
TEST_P(Full, EqualsTorchAtEveryLayout) {
  const TempDir dir;
  const std::string name = GetParam();
  const Json expected = case_of(name);
  const auto steps = expected["steps"].get<std::vector<Json>>();
  std::vector<std::pair<int, int>> layouts{{1, 1}, {2, 2}, {4, 1}};
  if (!std::getenv("LORASHARD_TEST_BACKEND")) layouts.push_back({3, 1});
  for (const auto& [tensor, data] : layouts) {
    const std::string layout = std::to_string(tensor) + "x" + std::to_string(data);
    SCOPED_TRACE(layout);
    const FullResult run = run_full(name, dir / layout, tensor, data);
    ASSERT_EQ(run.metrics.size(), steps.size());
    EXPECT_LT(metric_distance(run.metrics, steps, "loss"), 1e-5);
    EXPECT_LT(metric_distance(run.metrics, steps, "grad_norm"), 1e-5);
    EXPECT_NEAR(run.metrics.back()["eval_loss"], expected["eval_loss"], 5e-6);
    EXPECT_LT(distance(run.weights, expected["tensors"]), 1e-5);
  }
}
INSTANTIATE_TEST_SUITE_P(Cases, Full, testing::ValuesIn(kCases));

TEST(FullRecompute, ChangesNoBit) {
  const TempDir dir;
  const FullResult kept = run_full("qwen3", dir / "NONE", 2, 1, {"compute.recompute=NONE"});
  for (const std::string level : {"FULL", "MLP"}) {
    const FullResult again = run_full("qwen3", dir / level, 2, 1, {"compute.recompute=" + level});
    EXPECT_EQ(distance(kept.weights, again.weights), 0) << level;
  }
}

// Two halves of a micro-batch in flight add their gradients in another order.
TEST(FullOverlap, FollowsTheWholeMicroBatch) {
  const TempDir dir;
  const auto run = [&](const std::string& overlap) {
    return run_full("llama2", dir / overlap, 2, 1, {"parallel.overlap=" + overlap});
  };
  EXPECT_LT(distance(run("true").weights, run("false").weights), 1e-5);
}

// fp32 masters take updates that a bf16 weight would lose: after eight steps of a small rate they
// have moved as fp32's do.
TEST(FullBf16, FollowsFp32WithMasters) {
  const TempDir dir;
  const std::vector<std::string> small = {"optimizer.learning_rate=1e-5"};
  const FullResult fp32 = run_full("llama2", dir / "32", 1, 1, small);
  auto settings = small;
  settings.push_back("compute.dtype=BF16");
  const FullResult bf16 = run_full("llama2", dir / "16", 2, 1, settings);
  EXPECT_LT(metric_distance(bf16.metrics, fp32.metrics, "loss"), 1e-2);
  EXPECT_LT(metric_distance(bf16.metrics, fp32.metrics, "grad_norm"), 5e-2);
  const Weights before = [&] {
    Weights w;
    const auto base = BaseModel::open((golden("peft/llama2") / "model").string());
    Stream host(1);
    for (const auto& t : base->tensors()) {
      w[t.name].resize(size_t(t.rows() * t.cols()));
      convert(host, matrix(w[t.name].data(), t.rows(), t.cols(), DType::F32),
              base->whole(t.name).matrix);
    }
    return w;
  }();
  double moved = 0, apart = 0;
  for (const auto& [name, w] : before) {
    for (size_t i = 0; i < w.size(); ++i) {
      moved += std::pow(double(fp32.weights.at(name)[i]) - w[i], 2);
      apart += std::pow(double(fp32.weights.at(name)[i]) - bf16.weights.at(name)[i], 2);
    }
  }
  EXPECT_GT(moved, 0);
  EXPECT_LT(apart, 0.25 * moved);
}

TEST(FullResume, EqualsTheUninterruptedRunBitForBit) {
  const TempDir dir;
  for (const std::string type : {"FP32", "BF16"}) {
    const std::vector<std::string> settings = {"data.shuffle=true", "compute.dtype=" + type};
    const FullResult whole = run_full("llama2", dir / ("whole" + type), 2, 2, settings);
    run_full("llama2", dir / ("run" + type), 2, 2, settings, false, 3);
    const FullResult resumed = run_full("llama2", dir / ("run" + type), 2, 2, settings, true);
    EXPECT_EQ(metric_distance(resumed.metrics, whole.metrics, "loss"), 0) << type;
    EXPECT_EQ(distance(resumed.weights, whole.weights), 0) << type;
  }
}

TEST(FullResume, ContinuesTheCurveAtAnotherLayout) {
  const TempDir dir;
  const FullResult whole = run_full("qwen2", dir / "whole", 4, 1);
  run_full("qwen2", dir / "run", 4, 1, {}, false, 4);
  const FullResult resumed = run_full("qwen2", dir / "run", 1, 2, {}, true);
  EXPECT_LT(metric_distance(resumed.metrics, whole.metrics, "loss"), 1e-5);
  EXPECT_LT(distance(resumed.weights, whole.weights), 1e-5);
}

TEST(FullResume, PassesOverADamagedCheckpointAndLeavesAFinishedRun) {
  const TempDir dir;
  const std::vector<std::string> settings = {"checkpoint.every=2"};
  const FullResult whole = run_full("llama2", dir / "whole", 1, 1, settings);
  run_full("llama2", dir / "run", 1, 1, settings, false, 5);
  const fs::path newest = (dir / "run") / "checkpoints" / "step-000005";
  ASSERT_TRUE(fs::exists(newest));
  fs::resize_file(newest / "trainer_state.safetensors",
                  fs::file_size(newest / "trainer_state.safetensors") - 1);
  const FullResult resumed = run_full("llama2", dir / "run", 1, 1, settings, true);
  EXPECT_EQ(distance(resumed.weights, whole.weights), 0);
  const auto written = fs::last_write_time((dir / "run") / "model" / "model.safetensors");
  run_full("llama2", dir / "run", 1, 1, settings, true);
  EXPECT_EQ(fs::last_write_time((dir / "run") / "model" / "model.safetensors"), written);
}

TEST(FullSettings, AreHonouredOrRefusedByName) {
  const TempDir dir;
  expect_error(kExitInput, {"lora.init_from", "FULL"},
               [&] { run_full("llama2", dir / "run", 1, 1, {"lora.init_from=somewhere"}); });
  expect_error(kExitInput, {"train.model_dtype", "FULL"},
               [&] { run_full("llama2", dir / "run", 1, 1, {"train.method=LORA"}); });
  // A run keeps its method.
  run_full("llama2", dir / "run", 1, 1, {}, false, 2);
  expect_error(kExitInput, {"train.method: FULL"},
               [&] { run_golden("llama2", dir / "run", 1, 1, {}, true); });
}

}  // namespace
}  // namespace lorashard::test
