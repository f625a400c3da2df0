// LoRA+, layers_to_transform, trained biases, DoRA: against torch + PEFT, at every kind of layout.
#include <gtest/gtest.h>

#include "checkpoint/base_model.h"
#include "checkpoint/export.h"
#include "configs/error.h"
#include "tests/support/temp_dir.h"
#include "tests/trainer/golden_run.h"

namespace lorashard::test {
namespace {

struct MethodCase {
  const char* name;
  const char* model;  // the case of make_golden.py that has model and data
};
const MethodCase kCases[] = {{"layers_loraplus", "llama_tied_bias"},
                             {"bias_all", "llama_tied_bias"},
                             {"bias_lora_only_loraplus", "qwen2"},
                             {"dora", "llama_tied_bias"},
                             {"dora_loraplus_bias", "qwen2"}};

RunResult run(const MethodCase& c, const fs::path& out, int tensor, int data,
              std::vector<std::string> settings = {}, bool resume = false, int stop_after = 0) {
  const fs::path source = golden("peft") / c.model;
  settings.push_back("model.path=" + (source / "model").string());
  settings.push_back("data.train=" + (source / "data.jsonl").string());
  settings.push_back("data.eval=" + (source / "eval.jsonl").string());
  return run_golden(std::string("methods/") + c.name, out, tensor, data, std::move(settings),
                    resume, stop_after);
}

class Methods : public testing::TestWithParam<MethodCase> {
 protected:
  const MethodCase c = GetParam();
  const fs::path dir = golden(std::string("peft/methods/") + c.name);
  const std::unique_ptr<const BaseModel> base =
      BaseModel::open((golden("peft") / c.model / "model").string());
};
INSTANTIATE_TEST_SUITE_P(Cases, Methods, testing::ValuesIn(kCases),
                         [](const auto& info) { return std::string(info.param.name); });

// The reference is float64: what differs are our fp32 sums, 1e-7 each, a few 1e-7 after six steps.
// AdamW divides by the root of the second moment, which makes small gradients' errors large, and
// LoRA+ multiplies them: so the adapter's tolerance.
TEST_P(Methods, FollowPeftAtEveryLayout) {
  const TempDir out;
  const auto expected = read_json(dir / "expected.json");
  const auto steps = expected["steps"].get<std::vector<nlohmann::json>>();
  const Adapter final_adapter = read_adapter(dir / "final_adapter", base->config());
  for (const auto& [tensor, data] : {std::pair{1, 1}, {2, 2}, {3, 1}, {4, 1}}) {
    const std::string layout = std::to_string(tensor) + "x" + std::to_string(data);
    SCOPED_TRACE(layout);
    const RunResult r = run(
        c, out / layout, tensor, data,
        {"train.replica_check_every=1", data > 1 ? "train.micro_batch_size=1" : "train.seed=0"});
    ASSERT_EQ(r.metrics.size(), steps.size());
    EXPECT_LT(metric_distance(r.metrics, steps, "loss"), 1e-5);
    EXPECT_LT(metric_distance(r.metrics, steps, "grad_norm"), 1e-5);
    for (size_t i = 0; i < steps.size(); ++i) {
      EXPECT_DOUBLE_EQ(r.metrics[i]["learning_rate"], steps[i]["learning_rate"]);
    }
    EXPECT_NEAR(r.metrics.back()["eval_loss"], expected["eval_loss"], 1e-5);
    EXPECT_LT(adapter_distance(r.adapter, final_adapter), 4e-4);
  }
}

// What is recomputed, and a stop with a resume, change no bit.
TEST_P(Methods, RecomputeAndResumeKeepEveryBit) {
  const TempDir out;
  const RunResult none = run(c, out / "none", 2, 1, {"compute.recompute=NONE"});
  const RunResult full = run(c, out / "full", 2, 1, {"compute.recompute=FULL"});
  EXPECT_EQ(adapter_distance(full.adapter, none.adapter), 0);
  run(c, out / "resumed", 2, 1, {"compute.recompute=NONE"}, false, 3);
  const RunResult resumed = run(c, out / "resumed", 2, 1, {"compute.recompute=NONE"}, true);
  EXPECT_EQ(adapter_distance(resumed.adapter, none.adapter), 0);
  EXPECT_EQ(metric_distance(resumed.metrics, none.metrics, "loss"), 0);
}

// The merged model's tensors give the adapter's loss.
TEST_P(Methods, MergedIsTheSameModel) {
  const TempDir out;
  const Adapter adapter = read_adapter(dir / "adapter", base->config());
  ExportOptions options;
  options.dtype = DType::F32;
  export_merged(*base, adapter, (out / "merged").string(), options);
  const auto expected = read_json(dir / "expected.json");
  // One step at rate 0 of fresh factors, B = 0, on the merged model: the loss of step 1.
  const fs::path source = golden("peft") / c.model;
  const RunResult r = run_golden(
      std::string("methods/") + c.name, out / "run", 1, 1,
      {"model.path=" + (out / "merged").string(), "data.train=" + (source / "data.jsonl").string(),
       "data.eval=" + (source / "eval.jsonl").string(), "lora.init_from=", "lora.bias=none",
       "lora.use_dora=false", "lora.use_rslora=false", "lora.target_modules=[\"q_proj\"]",
       "lora.layers_to_transform=[]", "lora.layers_pattern=[]", "train.steps=1"});
  EXPECT_NEAR(r.metrics[0]["loss"], expected["steps"][0]["loss"], 2e-5);
}

std::string refusal(const std::vector<std::string>& settings) {
  const TempDir out;
  try {
    run(kCases[1], out / "run", 1, 1, settings);
  } catch (const Error& e) {
    EXPECT_EQ(e.exit_status, 2);
    return e.what();
  }
  return "";
}

TEST(Methods, ContradictoryFieldsAreRefusedByName) {
  const auto names = [](const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
  };
  EXPECT_PRED2(names, refusal({"lora.bias=lora_only"}), "lora.bias differs from the adapter");
  EXPECT_PRED2(names, refusal({"lora.layers_to_transform=[0]"}),
               "lora.layers_to_transform differs");
  EXPECT_PRED2(names, refusal({"lora.layers_pattern=[\"h\"]"}),
               "expected lora.layers_to_transform beside it");
  EXPECT_PRED2(names,
               refusal({"lora.target_modules=[\"all-linear\"]", "lora.layers_to_transform=[1]"}),
               "expected names of modules");
  EXPECT_PRED2(names, refusal({"lora.layers_to_transform=[-1]"}), "expected at least 0");
  EXPECT_PRED2(names, refusal({"optimizer.loraplus_lr_ratio=0"}), "a finite number above 0");
}

// All ranks hold the one key/value head: its magnitudes count once.
TEST(Methods, DoraOfOneKeyValueHeadBeginsAlikeAtEveryLayout) {
  const TempDir dir;
  const std::vector<std::string> settings = {"lora.init_from=", "lora.use_dora=true",
                                             "lora.target_modules=all-linear", "train.steps=2"};
  const RunResult one = run_golden("gemma3", dir / "one", 1, 1, settings);
  for (const int tensor : {2, 3}) {
    const RunResult run = run_golden("gemma3", dir / std::to_string(tensor), tensor, 1, settings);
    EXPECT_LT(metric_distance(run.metrics, one.metrics, "loss"), 1e-5) << tensor;
    EXPECT_LT(adapter_distance(run.adapter, one.adapter), 4e-4) << tensor;
  }
}

}  // namespace
}  // namespace lorashard::test
