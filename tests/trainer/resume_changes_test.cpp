// Resuming with other settings and other data: what is refused, what is named, and how the run goes
// on. And runs that have nothing to continue.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>

#include "checkpoint/training_manifest.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"
#include "tests/trainer/golden_run.h"

namespace lorashard::test {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr const char* kCase = "llama31";  // 14 lines, batches of 4

std::string original_data() { return read_text(golden("peft/llama31/data.jsonl")); }

std::map<std::string, std::string> tree(const fs::path& dir) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(dir)) {
    files[entry.path().string()] = entry.is_regular_file() ? read_text(entry.path()) : "";
  }
  return files;
}

// A run of 8 steps, stopped after its third if `stop_after` says so.
struct StoppedRun {
  TempDir dir;
  fs::path out = dir / "run", data = dir / "data.jsonl";
  std::string told;  // by the last resume
  const std::vector<std::string> settings{"data.train=" + data.string(), "data.shuffle=true",
                                          "lora.dropout=0.25", "train.seed=11",
                                          "checkpoint.keep_last=0"};

  explicit StoppedRun(int stop_after = 3) {
    write_data(original_data());
    run_golden(kCase, out, 1, 1, settings, false, stop_after);
  }
  void write_data(const std::string& text) { std::ofstream(data, std::ios::trunc) << text; }

  // Continues with `changes` in place of the settings of the same names.
  RunResult resume(const std::vector<std::string>& changes = {}, bool accept = false,
                   int stop_after = 0, int ranks = 1) {
    std::vector<std::string> all = changes;
    for (const std::string& setting : settings) {
      const std::string name = setting.substr(0, setting.find('=') + 1);
      const auto is_it = [&](const std::string& change) { return change.starts_with(name); };
      if (std::none_of(changes.begin(), changes.end(), is_it)) all.push_back(setting);
    }
    testing::internal::CaptureStdout();
    try {
      const RunResult result = run_golden(kCase, out, 1, ranks, all, true, stop_after, accept);
      told = testing::internal::GetCapturedStdout();
      return result;
    } catch (...) {
      told = testing::internal::GetCapturedStdout();
      throw;
    }
  }
  // Without the flag it is refused, names all of `parts`, and nothing is touched.
  void expect_refused(const std::vector<std::string>& changes,
                      const std::vector<std::string>& parts, bool accept = false) {
    const auto before = tree(out);
    expect_error(kExitInput, parts, [&] { resume(changes, accept); });
    EXPECT_EQ(tree(out), before);
  }
  TrainingManifest manifest(int step) const {
    char name[32];
    std::snprintf(name, sizeof name, "step-%06d", step);
    return verify_training_manifest(out / "checkpoints" / name);
  }
};

TEST(ChangedSettings, AreNamedRecordedAndEveryConfigurationKept) {
  StoppedRun run;
  const std::string first = read_text(run.out / "config.textproto");
  const std::vector<std::string> changes{"optimizer.learning_rate=0.001", "schedule.kind=COSINE",
                                         "lora.dropout=0", "train.steps=9",
                                         "train.micro_batch_size=1"};
  run.resume(changes, false, 2);
  for (const char* note : {"note: lora.dropout 0.25 -> 0, from step 4 on\n",
                           "note: optimizer.learning_rate 0.005 -> 0.001, from step 4 on\n",
                           "note: schedule.kind LINEAR -> COSINE, from step 4 on\n",
                           "note: train.steps 8 -> 9, from step 4 on\n"}) {
    EXPECT_THAT(run.told, HasSubstr(note));
  }
  EXPECT_THAT(run.told, Not(HasSubstr("micro_batch_size")));
  EXPECT_EQ(read_text(run.out / "configs/until-step-000003.textproto"), first);
  const std::string second = read_text(run.out / "config.textproto");
  EXPECT_THAT(second, HasSubstr("learning_rate: 0.001"));

  run.resume(changes);
  EXPECT_THAT(run.told, Not(HasSubstr("from step"))) << "they are the run's own by now";
  EXPECT_EQ(read_text(run.out / "config.textproto"), second);
  EXPECT_THAT(run.manifest(9).change(),
              ElementsAre("step 3: lora.dropout 0.25 -> 0",
                          "step 3: optimizer.learning_rate 0.005 -> 0.001",
                          "step 3: schedule.kind LINEAR -> COSINE", "step 3: train.steps 8 -> 9"));
  EXPECT_THAT(inspect_checkpoint(run.out / "checkpoints/step-000009"),
              Contains("changed: step 3: train.steps 8 -> 9"));
}

TEST(ChangedData, IsRefusedByNameUnlessAccepted) {
  StoppedRun run;
  run.write_data(original_data() + "{\"input_ids\":[1,2,3]}\n");
  run.expect_refused({"data.seq_len=16", "train.global_batch_size=8"},
                     {"--set data.train: data.train (SHA-256", "data.seq_len 32 -> 16",
                      "train.global_batch_size 4 -> 8", "--accept-changes", "step-000003"});
  // What no flag changes.
  run.expect_refused({"lora.init_from=" + golden("peft/llama31_new_config/adapter").string()},
                     {"lora"}, true);
}

// A line of other bytes and the same tokens: the run goes on where it was, bit for bit.
TEST(ChangedData, AMendedLineKeepsThePlaceInTheData) {
  const StoppedRun whole(0);
  StoppedRun run;
  std::string text = original_data();
  run.write_data(text.replace(text.rfind('}'), 1, ",\"mended\":true}"));
  const RunResult resumed = run.resume({}, true);
  EXPECT_THAT(run.told, HasSubstr("goes on at its place in the data"));
  EXPECT_EQ(read_text(run.out / "adapter/adapter_model.safetensors"),
            read_text(whole.out / "adapter/adapter_model.safetensors"));
  EXPECT_THAT(run.manifest(8).change(), ElementsAre(HasSubstr("step 3: data.train (SHA-256")));
}

// After any accepted change: stopped once more and resumed without a flag, at another layout too,
// the run is the one that was not stopped. Places of the stream never come twice.
TEST(ChangedData, AcceptedChangesHoldForLaterResumes) {
  struct Case {
    std::vector<std::string> changes;
    bool longer;
    int64_t data_begins, consumed;  // at step 8
  };
  const Case cases[] = {{{"train.global_batch_size=2"}, false, 0, 12 + 5 * 2},
                        {{"train.global_batch_size=8", "data.seq_len=16"}, false, 0, 12 + 5 * 8},
                        {{"train.seed=12"}, false, 12, 32},
                        {{"data.shuffle=false"}, false, 12, 32},
                        {{}, true, 12, 32}};
  for (const Case& c : cases) {
    SCOPED_TRACE(c.changes.empty() ? "longer data" : c.changes[0]);
    StoppedRun once, twice, other;
    if (c.longer) {
      for (StoppedRun* run : {&once, &twice, &other}) {
        run->write_data(original_data() + "{\"input_ids\":[1,2,3]}\n");
      }
    }
    const RunResult expected = once.resume(c.changes, true);
    EXPECT_EQ(expected.metrics.size(), 8u);
    twice.resume(c.changes, true, 2);
    const RunResult got = twice.resume(c.changes);
    EXPECT_EQ(adapter_distance(got.adapter, expected.adapter), 0);
    EXPECT_EQ(metric_distance(got.metrics, expected.metrics, "loss"), 0);
    std::vector<std::string> two_ranks = c.changes;
    two_ranks.push_back("train.micro_batch_size=1");
    EXPECT_LT(adapter_distance(other.resume(two_ranks, true, 0, 2).adapter, expected.adapter),
              1e-4);
    EXPECT_EQ(twice.manifest(8).data_begins(), c.data_begins);
    EXPECT_EQ(twice.manifest(8).sequences_consumed(), c.consumed);
  }
}

// In an order of its own after a change: steps 4 to 7 of the new data are its lines from the first.
TEST(ChangedData, BegunAnewIsReadFromItsBeginning) {
  StoppedRun run;
  std::string longer;
  for (int i = 0; i < 20; ++i) {
    longer += "{\"input_ids\":[3";
    for (int k = 0; k <= i; ++k) longer += ",4";
    longer += "]}\n";  // line i + 1 has i + 2 tokens
  }
  run.write_data(longer);
  const RunResult resumed = run.resume({"data.shuffle=false"}, true);
  const int64_t tokens[] = {2 + 3 + 4 + 5, 6 + 7 + 8 + 9, 10 + 11 + 12 + 13, 14 + 15 + 16 + 17,
                            18 + 19 + 20 + 21};
  for (int i = 0; i < 5; ++i) EXPECT_EQ(resumed.metrics[size_t(3 + i)].at("tokens"), tokens[i]);
}

TEST(FinishedRun, IsLeftAsItIs) {
  StoppedRun run(0);
  std::ofstream(run.out / "adapter/README.md") << "mine\n";
  const auto before = tree(run.out);
  for (const int ranks : {1, 2}) {
    run.resume({"train.micro_batch_size=1", "optimizer.learning_rate=1"}, false, 0, ranks);
    EXPECT_THAT(run.told, HasSubstr("is finished (8 of 8 steps)"));
    EXPECT_THAT(run.told, HasSubstr("train.steps"));
    EXPECT_EQ(tree(run.out), before);
  }
  run.expect_refused({"train.steps=5"},
                     {"--set train.steps: train.steps is 5, the run has made 8"});
  // Killed between its last checkpoint and its adapter, it is not finished.
  fs::remove(run.out / "adapter/adapter_config.json");
  run.resume();
  EXPECT_EQ(tree(run.out), before);
  // Continued, it gets another adapter; what else lies beside it is the user's.
  run.resume({"train.steps=9"});
  const auto after = tree(run.out);
  const std::string weights = (run.out / "adapter/adapter_model.safetensors").string(),
                    readme = (run.out / "adapter/README.md").string();
  EXPECT_NE(after.at(weights), before.at(weights));
  EXPECT_EQ(after.at(weights),
            read_text(run.out / "checkpoints/step-000009/adapter_model.safetensors"));
  EXPECT_EQ(after.at(readme), "mine\n");
}

}  // namespace
}  // namespace lorashard::test
