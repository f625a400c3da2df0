// What is trained of embedding and head, against torch + PEFT (tests/golden/peft/make_vocab.py):
// LoRA on lm_head and embed_tokens, modules_to_save, trainable_token_indices; of tied models too.
#include <gtest/gtest.h>

#include <fstream>

#include "checkpoint/base_model.h"
#include "checkpoint/export.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"
#include "tests/trainer/golden_run.h"

namespace lorashard::test {
namespace {

nlohmann::json expected_of(const std::string& name) {
  return read_json(golden("peft/vocab/" + name) / "expected.json");
}

// Where the model and the data of a case lie.
fs::path source_of(const std::string& name) {
  return golden("peft/" + expected_of(name)["model"].get<std::string>());
}

// The base of a case: where the case has a padding token, a copy whose config names it.
fs::path base_of(const std::string& name, const fs::path& dir) {
  const fs::path model = source_of(name) / "model";
  const nlohmann::json pad = expected_of(name)["pad_token_id"];
  if (pad.is_null()) return model;
  const fs::path copy = dir / "model";
  if (fs::exists(copy)) return copy;
  fs::create_directories(copy);
  fs::copy_file(model / "model.safetensors", copy / "model.safetensors");
  nlohmann::json config = read_json(model / "config.json");
  config["pad_token_id"] = pad;
  std::ofstream(copy / "config.json") << config.dump();
  return copy;
}

std::vector<std::string> inputs_of(const std::string& name, const fs::path& dir) {
  return {"model.path=" + base_of(name, dir).string(),
          "data.train=" + (source_of(name) / "data.jsonl").string(),
          "data.eval=" + (source_of(name) / "eval.jsonl").string()};
}

RunResult run_case(const std::string& name, const fs::path& dir, const std::string& run, int tensor,
                   int data, std::vector<std::string> settings = {}) {
  const std::vector<std::string> inputs = inputs_of(name, dir);
  settings.insert(settings.end(), inputs.begin(), inputs.end());
  settings.push_back("train.replica_check_every=1");
  return run_golden("vocab/" + name, dir / run, tensor, data, settings);
}

class Vocab : public testing::TestWithParam<const char*> {};

// The reference is in double. Ours adds up in fp32: 1e-7 a sum. Layouts that cut the vocabulary in
// parts of unequal size; part of the tokens lies on each rank.
TEST_P(Vocab, EqualsPeftAtEveryLayout) {
  const TempDir dir;
  const std::string name = GetParam();
  const auto expected = expected_of(name);
  const auto steps = expected["steps"].get<std::vector<nlohmann::json>>();
  const Adapter want = read_adapter(golden("peft/vocab/" + name) / "final_adapter",
                                    BaseModel::open(base_of(name, dir.path()).string())->config());
  for (const auto& [tensor, data] : {std::pair{1, 1}, {2, 2}, {3, 1}, {4, 1}}) {
    const std::string layout = std::to_string(tensor) + "x" + std::to_string(data);
    SCOPED_TRACE(layout);
    const RunResult run = run_case(name, dir.path(), layout, tensor, data);
    EXPECT_LT(metric_distance(run.metrics, steps, "loss"), 5e-6);
    EXPECT_LT(metric_distance(run.metrics, steps, "grad_norm"), 1e-5);
    EXPECT_NEAR(run.metrics.back()["eval_loss"], expected["eval_loss"], 1e-5);
    // AdamW divides by the root of the second moment, which makes small gradients' errors large.
    EXPECT_LT(adapter_distance(run.adapter, want), 1e-4);
  }
}
INSTANTIATE_TEST_SUITE_P(Cases, Vocab,
                         testing::Values("lora", "lora_head", "lora_tied", "lora_scaled", "saved",
                                         "saved_tied", "saved_as_one", "tokens", "tokens_tied"));

// Recomputation, overlap and dropout, whose mask on the head's input is that of the token.
TEST(VocabRuns, LayoutsAndRecomputationChangeNothing) {
  const TempDir dir;
  const std::vector<std::string> dropout = {"lora.dropout=0.2"};
  const RunResult one = run_case("lora", dir.path(), "one", 1, 1, dropout);
  const RunResult none = run_case("lora", dir.path(), "none", 1, 1);
  EXPECT_GT(metric_distance(one.metrics, none.metrics, "loss"), 1e-4);
  const RunResult again =
      run_case("lora", dir.path(), "full", 1, 1, {"lora.dropout=0.2", "compute.recompute=FULL"});
  EXPECT_EQ(metric_distance(one.metrics, again.metrics, "loss"), 0);
  EXPECT_EQ(adapter_distance(one.adapter, again.adapter), 0);
  const RunResult halves =
      run_case("lora", dir.path(), "halves", 2, 1, {"lora.dropout=0.2", "parallel.overlap=true"});
  EXPECT_LT(metric_distance(one.metrics, halves.metrics, "loss"), 1e-5);
  EXPECT_LT(adapter_distance(one.adapter, halves.adapter), 1e-4);
  for (const char* name : {"lora", "saved", "tokens_tied"}) {
    const RunResult fp32 = run_case(name, dir.path(), std::string(name) + "32", 1, 1);
    const RunResult bf16 =
        run_case(name, dir.path(), std::string(name) + "16", 2, 1, {"compute.dtype=BF16"});
    EXPECT_LT(metric_distance(bf16.metrics, fp32.metrics, "loss"), 1e-2) << name;
  }
}

// A run that was stopped goes on at another layout.
TEST(VocabRuns, ResumesElsewhere) {
  const TempDir dir;
  for (const char* name : {"lora", "saved", "tokens"}) {
    const std::vector<std::string> settings = inputs_of(name, dir.path());
    const std::string of = std::string("vocab/") + name, out = std::string(name) + "_run";
    run_golden(of, dir / out, 3, 1, settings, false, 2);
    const RunResult resumed = run_golden(of, dir / out, 2, 1, settings, true);
    const RunResult whole = run_case(name, dir.path(), std::string(name) + "_whole", 1, 1);
    EXPECT_LT(metric_distance(resumed.metrics, whole.metrics, "loss"), 1e-5) << name;
    EXPECT_LT(adapter_distance(resumed.adapter, whole.adapter), 1e-4) << name;
  }
}

// A merged model has the losses of base and adapter: fp32, so that nothing is rounded. What the
// adapter changes of one end of a tied model unties it.
TEST(VocabRuns, MergedModelsHaveTheAdaptersLosses) {
  const TempDir dir;
  for (const char* name : {"lora", "lora_tied", "lora_scaled", "saved", "saved_tied",
                           "saved_as_one", "tokens", "tokens_tied"}) {
    const fs::path base_dir = base_of(name, dir.path());
    const auto base = BaseModel::open(base_dir.string());
    const fs::path out = dir / (std::string("merged_") + name);
    ExportOptions options;
    options.dtype = DType::F32;
    export_merged(
        *base,
        read_adapter(golden("peft/vocab/" + std::string(name)) / "final_adapter", base->config()),
        out.string(), options);
    const auto merged = BaseModel::open(out.string());
    const bool one = std::string(name) == "saved_as_one" || std::string(name) == "tokens_tied";
    EXPECT_EQ(merged->config().tied_embeddings, base->config().tied_embeddings && one) << name;
    // A step of rate 0 with a new adapter, whose B is 0: its evaluation is that of the model.
    const std::string rows = expected_of(name)["model"];
    const RunResult run =
        run_golden(rows, dir / (std::string("eval_") + name), 2, 1,
                   {"model.path=" + out.string(), "lora.init_from=", "lora.target_modules=q_proj",
                    "train.steps=1", "optimizer.learning_rate=0"});
    EXPECT_NEAR(run.metrics.back()["eval_loss"], expected_of(name)["eval_loss"], 1e-5) << name;
  }
}

TEST(VocabRuns, BeginFromTheBase) {
  const TempDir dir;
  const RunResult plain =
      run_case("lora", dir.path(), "plain", 1, 1,
               {"lora.init_from=", "lora.target_modules=q_proj", "train.steps=1"});
  const auto first_loss = [&](const std::string& name, std::vector<std::string> settings) {
    settings.insert(settings.end(), {"lora.init_from=", "train.steps=1"});
    return double(run_case("lora", dir.path(), name, 2, 1, settings).metrics[0]["loss"]);
  };
  const double base = plain.metrics[0]["loss"];
  EXPECT_NEAR(first_loss("a", {"lora.target_modules=lm_head", "lora.target_modules=embed_tokens"}),
              base, 1e-5);
  EXPECT_NEAR(first_loss("b", {"lora.target_modules=q_proj", "lora.modules_to_save=lm_head",
                               "lora.modules_to_save=embed_tokens"}),
              base, 1e-5);
  EXPECT_NEAR(first_loss("c", {"lora.target_modules=q_proj", "lora.trainable_token_indices=5",
                               "lora.trainable_token_indices=300"}),
              base, 1e-5);
}

TEST(VocabRuns, ContradictionsAreRefused) {
  const TempDir dir;
  const auto refuses = [&](std::vector<std::string> settings, const std::string& what) {
    settings.push_back("lora.init_from=");
    try {
      run_case("tokens_tied", dir.path(), "run", 1, 1, settings);
      ADD_FAILURE() << "accepted: " << what;
    } catch (const Error& e) {
      EXPECT_EQ(e.exit_status, kExitInput) << e.what();
      EXPECT_NE(std::string(e.what()).find(what), std::string::npos) << e.what();
    }
  };
  refuses({"lora.target_modules=lm_head", "lora.modules_to_save=lm_head"},
          "modules_to_save names lm_head, which target_modules adapts too");
  refuses({"lora.modules_to_save=norm"}, "which names model.layers.0.input_layernorm");
  refuses({"lora.modules_to_save=nothing"}, "is no module of the model");
  refuses({"lora.trainable_token_indices=301"}, "has the id 301; the vocabulary has 0 to 300");
  refuses({"lora.trainable_token_indices=3", "lora.trainable_token_indices=3"},
          "has the id 3 twice");
  refuses({"lora.trainable_token_indices=3", "lora.modules_to_save=embed_tokens"},
          "trains rows of model.embed_tokens, which modules_to_save trains as a whole too");
  refuses({"lora.trainable_token_indices=3", "lora.target_modules=lm_head"},
          "trains rows of lm_head, which target_modules adapts too");
  refuses({"lora.target_modules=lm_head", "lora.ensure_weight_tying=true"},
          "factors that the two share are not supported");
}

}  // namespace
}  // namespace lorashard::test
