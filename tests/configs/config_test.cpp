// Loading, overriding and checking run configurations: values, and the exact place and wording of
// what is refused.
#include "configs/config.h"

#include <gmock/gmock.h>
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>

#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "configs/error.h"
#include "tests/support/text.h"

namespace lorashard {
namespace {

using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Pair;
using ::testing::StartsWith;
namespace fs = std::filesystem;

constexpr const char* kLeast =
    "model { path: \"m\" }\ndata { train: \"t\" }\noutput { dir: \"o\" }\n";

class ConfigTest : public ::testing::Test {
 protected:
  ConfigTest() {
    dir_ = fs::path(::testing::TempDir()) /
           ("config_test_" + std::to_string(::getpid()) + "_" +
            ::testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::create_directories(dir_);
    file_ = dir_ / "run.textproto";
  }
  ~ConfigTest() override { fs::remove_all(dir_); }

  Config load(const std::string& text, const std::vector<std::string>& overrides = {},
              ConfigUse use = ConfigUse::Train) {
    std::ofstream(file_, std::ios::binary) << text;
    return load_config(file_.string(), overrides, use);
  }
  // kLeast is three lines long, so `text` starts on line 4.
  Config load_more(const std::string& text, const std::vector<std::string>& overrides = {}) {
    return load(kLeast + text, overrides);
  }
  // The error with the file's name replaced by F.
  std::string error(const std::string& text, const std::vector<std::string>& overrides = {},
                    ConfigUse use = ConfigUse::Train) {
    ::testing::internal::CaptureStderr();
    std::string message = "no error";
    try {
      load(text, overrides, use);
    } catch (const Error& e) {
      EXPECT_EQ(e.exit_status, 2);
      message = e.what();
    }
    EXPECT_EQ(::testing::internal::GetCapturedStderr(), "") << "protobuf wrote to stderr";
    return replace_all(message, file_.string(), "F");
  }
  std::string error_more(const std::string& text, const std::vector<std::string>& overrides = {}) {
    return error(kLeast + text, overrides);
  }

  fs::path dir_, file_;
};

TEST_F(ConfigTest, DefaultsAreThoseOfTheContract) {
  const RunConfig run = load(kLeast).run;
  EXPECT_EQ(run.data().format(), RunConfig::Data::TEXT);
  EXPECT_EQ(run.data().seq_len(), 512);
  EXPECT_TRUE(run.data().shuffle());
  EXPECT_TRUE(run.data().append_eos());
  EXPECT_EQ(run.lora().rank(), 8);
  EXPECT_EQ(run.lora().alpha(), 16);
  EXPECT_THAT(run.lora().target_modules(), ElementsAre("q_proj", "v_proj"));
  EXPECT_EQ(run.optimizer().learning_rate(), 1e-4);
  EXPECT_EQ(run.optimizer().beta2(), 0.999);
  EXPECT_EQ(run.optimizer().epsilon(), 1e-8);
  EXPECT_EQ(run.optimizer().max_grad_norm(), 1.0);
  EXPECT_EQ(run.train().steps(), 100);
  EXPECT_EQ(run.train().global_batch_size(), 8);
  EXPECT_EQ(run.train().micro_batch_size(), 2);
  EXPECT_EQ(run.parallel().tensor(), 1);
  EXPECT_EQ(run.checkpoint().every(), 50);
  EXPECT_EQ(run.checkpoint().keep_last(), 3);
  EXPECT_EQ(run.compute().backend(), RunConfig::Compute::Backend::AUTO);
  EXPECT_EQ(run.compute().recompute(), RunConfig::Compute::Recompute::AUTO);
  EXPECT_EQ(run.compute().dtype(), RunConfig::Compute::FP32);
}

TEST_F(ConfigTest, AnAdapterToStartFromBringsItsOwnTargets) {
  EXPECT_EQ(load_more("lora { init_from: \"a\" }").run.lora().target_modules_size(), 0);
}

TEST_F(ConfigTest, EverySettingOfTheContractIsAccepted) {
  const RunConfig run = load(R"(
model    { path: "DIR" }
data     { train: "F.jsonl" eval: "G.jsonl" format: TOKENS seq_len: 512 packing: false shuffle: true }
lora     { rank: 8 alpha: 16 dropout: 0 target_modules: "q_proj" target_modules: "v_proj"
           init_from: "PEFT_DIR" }
optimizer{ learning_rate: 1e-4 weight_decay: 0 beta1: 0.9 beta2: 0.999 epsilon: 1e-8 max_grad_norm: 1.0 }
schedule { kind: COSINE warmup_steps: 0 }
train    { method: LORA steps: 100 global_batch_size: 8 micro_batch_size: 2 seed: 18446744073709551615 eval_every: 50 }
parallel { tensor: 2 sequence: false reproducible: false }
checkpoint { every: 50 keep_last: 3 }
compute  { backend: CUDA dtype: BF16 threads: 0 recompute: AUTO }
output   { dir: "runs/name" }
)")
                            .run;
  EXPECT_EQ(run.data().format(), RunConfig::Data::TOKENS);
  EXPECT_EQ(run.train().seed(), ~uint64_t{0});
}

TEST_F(ConfigTest, PrintedConfigurationReadsBackTheSame) {
  const RunConfig run = load_more(R"(lora { rank: 3 alpha: 0.1 target_modules: "größe"
    rank_pattern { key: "a" value: 2 } alpha_pattern { key: "b\"" value: 1e-3 } })")
                            .run;
  const std::string text = to_textproto(run);
  EXPECT_THAT(text, HasSubstr("alpha: 0.1\n"));
  EXPECT_THAT(text, HasSubstr("größe"));
  EXPECT_THAT(text, HasSubstr("threads: 0\n")) << "defaults are printed too";
  const RunConfig again = load(text).run;
  EXPECT_TRUE(google::protobuf::util::MessageDifferencer::Equals(run, again));
  EXPECT_EQ(again.lora().rank_pattern(0).value(), 2);
}

TEST_F(ConfigTest, ExamplesLoad) {
  int examples = 0;
  for (const auto& entry : fs::directory_iterator(fs::path(LORASHARD_SOURCE_DIR) / "configs")) {
    if (entry.path().extension() != ".textproto") continue;
    EXPECT_NO_THROW(load_config(entry.path().string())) << entry.path();
    ++examples;
  }
  EXPECT_GE(examples, 3);
}

// The reference example claims to show every setting.
TEST_F(ConfigTest, ReferenceNamesEverySetting) {
  std::ifstream in(fs::path(LORASHARD_SOURCE_DIR) / "configs/reference.textproto");
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  const auto& root = *RunConfig::descriptor();
  for (int i = 0; i < root.field_count(); ++i)
    for (int j = 0; j < root.field(i)->message_type()->field_count(); ++j) {
      const std::string name = root.field(i)->message_type()->field(j)->name();
      // What can't stand beside another setting stands there as a comment.
      EXPECT_THAT(text, AnyOf(HasSubstr("\n  " + name), HasSubstr("\n  # " + name)));
    }
}

TEST_F(ConfigTest, UnknownNamesAreAllReportedWithSuggestions) {
  EXPECT_EQ(error_more("lora {\n  rnak: 4\n\tlora_alpha : 3\n}\nloar { rank: 3 }\n"),
            "F:5:3: there is no setting \"rnak\" in lora, did you mean \"rank\"?\n"
            "error: F:6:2: there is no setting \"lora_alpha\" in lora, did you mean \"alpha\"?\n"
            "error: F:8:1: there is no block \"loar\", did you mean \"lora\"?");
  EXPECT_EQ(error_more("lora { seq_len: 4 }"),
            "F:4:8: there is no setting \"seq_len\" in lora, did you mean data.seq_len?");
  EXPECT_EQ(error_more("rank: 4"), "F:4:1: there is no block \"rank\", did you mean lora.rank?");
  EXPECT_THAT(error("output { zzzz: 4 }"), EndsWith("expected one of dir, trace_collectives"));
  EXPECT_THAT(error_more("[foo.bar]: 4"), StartsWith("F:4:"));
}

TEST_F(ConfigTest, RepeatedSettingsAndBlocksAreRefused) {
  EXPECT_EQ(error_more("lora { rank: 4\nrank: 4 }"),
            "F:5:1: rank is set a second time, expected each setting and block once");
  EXPECT_EQ(error_more("lora { rank: 4 }\nlora { alpha: 4 }"),
            "F:5:1: lora is set a second time, expected each setting and block once");
  EXPECT_EQ(error_more("lora { rank_pattern { key: \"a\" value: 1 }\n"
                       "rank_pattern { key: \"a\" value: 2 } }"),
            "F:5:1: lora.rank_pattern has the key \"a\" a second time, expected each key once");
}

TEST_F(ConfigTest, WrongTypesAndSyntax) {
  EXPECT_EQ(error_more("schedule { kind: COSIN }"),
            "F:4:18: kind is \"COSIN\", expected CONSTANT, LINEAR or COSINE");
  EXPECT_EQ(error("data { shuffle: maybe }"),
            "F:1:17: shuffle is \"maybe\", expected true or false");
  EXPECT_EQ(error_more("lora { rank: \"8\" }"), "F:4:14: rank is \"8\", expected a whole number");
  EXPECT_EQ(error_more("lora { rank: 8.5 }"), "F:4:14: rank is \"8.5\", expected a whole number");
  EXPECT_EQ(error_more("lora { alpha: x }"), "F:4:15: alpha is \"x\", expected a number");
  EXPECT_EQ(error_more("lora { rank: 99999999999999999999 }"),
            "F:4:14: rank is \"99999999999999999999\", expected a whole number");
  EXPECT_EQ(error_more("train { seed: -1 }"),
            "F:4:15: seed is \"-\", expected a whole number from 0 to 18446744073709551615");
  EXPECT_EQ(error_more("lora { init_from: 3 }"), "F:4:19: init_from is \"3\", expected a string");
  EXPECT_THAT(error_more("lora { rank 8 }"), StartsWith("F:4:13: Expected \":\""));
  EXPECT_EQ(error_more("lora { rank: 8"), "F:4:15: the file ends inside a block, expected \"}\"");
  EXPECT_THAT(error_more("lora { rank: 8 } }"), StartsWith("F:4:18: "));
  EXPECT_THAT(error_more("model: \"x"), StartsWith("F:4:"));
}

TEST_F(ConfigTest, EveryRangeIsCheckedWithItsPlace) {
  EXPECT_EQ(error_more("lora {\n rank: 0 alpha: -1\n dropout: 1 }\ntrain { steps: 0 }"),
            "F:5:2: lora.rank is 0, expected at least 1\n"
            "error: F:5:10: lora.alpha is -1, expected a finite number above 0\n"
            "error: F:6:2: lora.dropout is 1, expected at least 0 and below 1\n"
            "error: F:7:9: train.steps is 0, expected at least 1");
  for (const char* bad : {"lora.rank=65537",
                          "lora.rank=-3",
                          "lora.alpha=0",
                          "lora.alpha=nan",
                          "lora.alpha=inf",
                          "lora.dropout=-0.1",
                          "lora.dropout=nan",
                          "lora.target_modules=\"\"",
                          "lora.rank_pattern.x=0",
                          "lora.alpha_pattern.x=0",
                          "optimizer.learning_rate=-1e-9",
                          "optimizer.learning_rate=inf",
                          "optimizer.weight_decay=-1",
                          "optimizer.beta1=1",
                          "optimizer.beta2=-0.1",
                          "optimizer.epsilon=0",
                          "optimizer.max_grad_norm=-1",
                          "schedule.warmup_steps=-1",
                          "schedule.warmup_ratio=1.5",
                          "schedule.min_learning_rate=-1",
                          "schedule.min_learning_rate=1e-5",
                          "schedule.min_learning_rate=1",
                          "schedule.cycles=0",
                          "schedule.cycles=2",
                          "train.steps=0",
                          "train.global_batch_size=0",
                          "train.micro_batch_size=0",
                          "train.micro_batch_size=3",
                          "train.eval_every=-1",
                          "train.replica_check_every=-1",
                          "train.log_every=0",
                          "parallel.tensor=0",
                          "checkpoint.every=-1",
                          "checkpoint.keep_last=-1",
                          "compute.threads=-1",
                          "compute.threads=5000",
                          "data.seq_len=1",
                          "data.seq_len=2000000",
                          "output.dir=",
                          "model.path=",
                          "data.train="}) {
    const std::string path = std::string(bad).substr(0, std::string(bad).find('='));
    const std::string message = error(kLeast, {bad});
    // The message of micro_batch_size=3 is about the global batch size, which is a default.
    if (path == "train.micro_batch_size" && std::string(bad).back() == '3')
      EXPECT_EQ(message,
                "F:1:1: train.global_batch_size is 8, expected a multiple of "
                "train.micro_batch_size, which is 3");
    else
      EXPECT_THAT(message, StartsWith("--set " + path + ": " + path)) << bad;
    EXPECT_THAT(message, HasSubstr("expected")) << bad;
  }
  for (const char* good : {"optimizer.learning_rate=0", "optimizer.max_grad_norm=0",
                           "checkpoint.keep_last=0", "train.eval_every=0", "optimizer.beta1=0",
                           "lora.dropout=0.999", "data.seq_len=2", "lora.alpha=1e-3"})
    EXPECT_EQ(error(kLeast, {good}), "no error") << good;
}

TEST_F(ConfigTest, ARunHasStepsOrEpochs) {
  const RunConfig run = load_more("train { epochs: 1.5 }").run;
  EXPECT_EQ(run.train().epochs(), 1.5);
  EXPECT_FALSE(run.train().has_steps());
  EXPECT_THAT(to_textproto(run), Not(HasSubstr(" steps:")));
  EXPECT_EQ(to_textproto(load(to_textproto(run)).run), to_textproto(run));
  EXPECT_THAT(to_textproto(load(kLeast).run), Not(HasSubstr(" epochs:")));
  EXPECT_EQ(error_more("train { steps: 8 epochs: 2 }"),
            "F:4:18: train.epochs stands beside train.steps, expected one of the two");
  EXPECT_EQ(error_more("train { epochs: 0 }"),
            "F:4:9: train.epochs is 0, expected a number above 0, at most 1e9");
}

TEST_F(ConfigTest, AnObjectiveHasItsDataAndSettings) {
  EXPECT_EQ(error(kLeast, {"data.format=PREFERENCE", "train.objective=DPO", "dpo.beta=0.5"}),
            "no error");
  EXPECT_THAT(error(kLeast, {"train.objective=DPO"}),
              HasSubstr("train.objective is DPO and data.format TEXT, expected data.format "
                        "PREFERENCE or PREFERENCE_TOKENS"));
  EXPECT_THAT(error(kLeast, {"data.format=PREFERENCE_TOKENS"}),
              HasSubstr("expected train.objective DPO"));
  EXPECT_THAT(error(kLeast, {"dpo.beta=0.5"}), HasSubstr("expected train.objective DPO with it"));
  EXPECT_THAT(error(kLeast, {"data.format=PREFERENCE", "train.objective=DPO", "dpo.beta=0"}),
              HasSubstr("dpo.beta is 0, expected a finite number above 0"));
  EXPECT_THAT(error(kLeast, {"data.format=PREFERENCE", "train.objective=DPO", "train.method=FULL"}),
              HasSubstr("train.objective is DPO with train.method FULL"));
}

TEST_F(ConfigTest, AScheduleTakesItsSettingsFromItsKind) {
  EXPECT_EQ(error_more("schedule { kind: COSINE cycles: 3 min_learning_rate: 1e-5 }"), "no error");
  EXPECT_EQ(error_more("schedule { kind: LINEAR min_learning_rate: 1e-4 warmup_ratio: 0.1 }"),
            "no error");
  EXPECT_EQ(error_more("schedule { kind: LINEAR cycles: 3 }"),
            "F:4:25: schedule.cycles is 3, expected 1 but with schedule.kind COSINE");
  EXPECT_EQ(error_more("schedule { warmup_steps: 3 warmup_ratio: 0.1 }"),
            "F:4:28: schedule.warmup_ratio stands beside schedule.warmup_steps, expected one of "
            "the two");
}

TEST_F(ConfigTest, WhatIsMissingDependsOnTheUse) {
  EXPECT_EQ(error(""),
            "F:1:1: model.path is not set, expected the folder of a model\n"
            "error: F:1:1: data.train is not set, expected a JSONL file\n"
            "error: F:1:1: output.dir is not set, expected the folder of the run");
  EXPECT_EQ(error("\nmodel { path: \"m\" } data { }", {}, ConfigUse::Eval),
            "F:2:21: data.eval is not set, expected a JSONL file");
  EXPECT_EQ(error("model { path: \"m\" }", {}, ConfigUse::Other), "no error");
}

TEST_F(ConfigTest, WhatThisVersionLacksIsRefusedByName) {
  EXPECT_EQ(error_more("parallel { sequence: true }"),
            "F:4:12: parallel.sequence is true, which this version does not support");
  for (const char* bad : {"data.format=CHAT", "data.packing=true", "parallel.sequence=true",
                          "parallel.reproducible=true"})
    EXPECT_THAT(error(kLeast, {bad}), HasSubstr("which this version does not support")) << bad;
}

TEST_F(ConfigTest, WhatOneMethodAloneHasIsRefusedWithTheOther) {
  EXPECT_THAT(error(kLeast, {"train.method=FULL", "lora.init_from=a"}),
              HasSubstr("lora.init_from has no place in train.method: FULL"));
  for (const char* bad : {"train.model_dtype=BF16", "optimizer.decay_norms_and_biases=true"}) {
    EXPECT_THAT(error(kLeast, {bad}), HasSubstr("for train.method: FULL alone")) << bad;
    EXPECT_EQ(error(kLeast, {bad, "train.method=FULL"}), "no error") << bad;
  }
}

// Key and value of each entry, in order.
template <class Patterns>
std::vector<std::pair<std::string, double>> patterns(const Patterns& list) {
  std::vector<std::pair<std::string, double>> found;
  for (const auto& p : list) found.emplace_back(p.key(), double(p.value()));
  return found;
}

TEST_F(ConfigTest, PatternsKeepTheOrderInWhichTheyAreWritten) {
  const std::string file =
      "lora { rank_pattern { key: \"z\" value: 1 } rank_pattern { key: \"a\" value: 2 } "
      "rank_pattern { key: \"m.n\" value: 3 } }";
  const auto ranks = [&](const std::vector<std::string>& overrides) {
    return patterns(load_more(file, overrides).run.lora().rank_pattern());
  };
  EXPECT_THAT(ranks({}), ElementsAre(Pair("z", 1), Pair("a", 2), Pair("m.n", 3)));
  EXPECT_THAT(ranks({"lora.rank_pattern.z=9", "lora.rank_pattern.b=4"}),
              ElementsAre(Pair("z", 9), Pair("a", 2), Pair("m.n", 3), Pair("b", 4)));
  EXPECT_THAT(ranks({"lora.rank_pattern=q:4,b:3,q.c:2"}),
              ElementsAre(Pair("q", 4), Pair("b", 3), Pair("q.c", 2)));
  const std::string printed = to_textproto(load_more(file).run);
  EXPECT_THAT(patterns(load(printed).run.lora().rank_pattern()),
              ElementsAre(Pair("z", 1), Pair("a", 2), Pair("m.n", 3)));
  EXPECT_THAT(error(kLeast, {"lora.rank_pattern=a:1,b:2,a:3"}), HasSubstr("\"a\" a second time"));
  EXPECT_THAT(error(kLeast, {"lora.rank_pattern=:1"}), HasSubstr("KEY:VALUE"));
  EXPECT_THAT(error_more("lora { rank_pattern { value: 1 } }"),
              StartsWith("F:4:8: lora.rank_pattern has no key"));
  EXPECT_THAT(error_more("lora { rank_pattern { key: \"a\" } }"),
              StartsWith("F:4:8: lora.rank_pattern.a is 0"));
  EXPECT_THAT(error_more("lora { rank_pattern { key: \"a\" walue: 1 } }"), HasSubstr("\"walue\""));
}

TEST_F(ConfigTest, OverridesReplaceTheFile) {
  const RunConfig run =
      load_more(
          "lora { rank: 4 target_modules: \"k_proj\" rank_pattern { key: \"a\" value: 1 } "
          "rank_pattern { key: \"b.c\" value: 1 } }",
          {"lora.rank=16", "lora.alpha=2e1", "lora.target_modules=q_proj, v_proj",
           "lora.target_modules=o_proj", "schedule.kind=COSINE", "data.shuffle=false",
           "output.dir=runs/a=b", "data.train=\"x\\ty\"", "lora.rank_pattern.b.c=7",
           "lora.alpha_pattern=q_proj:4,k_proj:2.5", "model.path=C:\\new"})
          .run;
  EXPECT_EQ(run.lora().rank(), 16);
  EXPECT_EQ(run.lora().alpha(), 20);
  EXPECT_THAT(run.lora().target_modules(), ElementsAre("q_proj", "v_proj", "o_proj"));
  EXPECT_EQ(run.schedule().kind(), RunConfig::Schedule::COSINE);
  EXPECT_FALSE(run.data().shuffle());
  EXPECT_EQ(run.output().dir(), "runs/a=b");
  EXPECT_EQ(run.data().train(), "x\ty") << "escapes hold in quotes";
  EXPECT_EQ(run.model().path(), "C:\\new") << "and not outside them";
  EXPECT_THAT(patterns(run.lora().rank_pattern()), ElementsAre(Pair("a", 1), Pair("b.c", 7)));
  EXPECT_THAT(patterns(run.lora().alpha_pattern()),
              ElementsAre(Pair("q_proj", 4), Pair("k_proj", 2.5)));
}

TEST_F(ConfigTest, ListsAndMapsAsOverrides) {
  auto targets = [&](const std::string& value) {
    const auto run = load(kLeast, {"lora.target_modules=" + value}).run;
    return std::vector<std::string>(run.lora().target_modules().begin(),
                                    run.lora().target_modules().end());
  };
  EXPECT_THAT(targets("[\"a\", 'b']"), ElementsAre("a", "b"));
  EXPECT_THAT(targets("[a, b]"), ElementsAre("a", "b"));
  EXPECT_THAT(targets("\"a,b\""), ElementsAre("a,b"));
  EXPECT_THAT(targets("\"a\",\"b\""), ElementsAre("a", "b"));
  EXPECT_THAT(targets(""), ElementsAre("q_proj", "v_proj")) << "none: the default";
  EXPECT_THAT(targets(".*\\.(q|v)_proj"), ElementsAre(".*\\.(q|v)_proj"));
  EXPECT_TRUE(is_module_regex(
      load(kLeast, {"lora.target_modules=.*\\.(q|v)_proj"}).run.lora().target_modules()));
  EXPECT_FALSE(is_module_regex(
      load(kLeast, {"lora.target_modules=self_attn.q_proj"}).run.lora().target_modules()));
  EXPECT_EQ(load_more("lora { rank_pattern { key: \"a\" value: 1 } }", {"lora.rank_pattern="})
                .run.lora()
                .rank_pattern_size(),
            0);
  EXPECT_THAT(error(kLeast, {"lora.target_modules=a,,b"}), HasSubstr("empty element"));
}

TEST_F(ConfigTest, WrongOverridesNameThemselves) {
  EXPECT_EQ(error(kLeast, {"lora.rnak=3"}),
            "--set lora.rnak: there is no setting \"rnak\" in lora, did you mean \"rank\"?");
  EXPECT_EQ(error(kLeast, {"loar.rank=3"}),
            "--set loar.rank: there is no block \"loar\", did you mean \"lora\"?");
  EXPECT_EQ(error(kLeast, {"lora"}),
            "--set lora: there is no \"=\", expected a path and a value, "
            "for example lora.rank=16");
  EXPECT_EQ(error(kLeast, {"lora=3"}),
            "--set lora: lora is a block, expected one of its settings, for example lora.rank");
  EXPECT_EQ(error(kLeast, {"lora.rank=x"}),
            "--set lora.rank: rank is \"x\", expected a whole number");
  EXPECT_THAT(error(kLeast, {"lora.rank=8 alpha: 3"}), HasSubstr("expected a whole number"));
  EXPECT_THAT(error(kLeast, {"lora.rank="}), HasSubstr("expected a whole number"));
  EXPECT_THAT(error(kLeast, {"lora.rank=1e30"}), HasSubstr("expected a whole number"));
  EXPECT_THAT(error(kLeast, {"lora.alpha=x"}), HasSubstr("expected a number"));
  EXPECT_THAT(error(kLeast, {"data.shuffle=yes"}), HasSubstr("expected true or false"));
  EXPECT_THAT(error(kLeast, {"schedule.kind=cosine"}), HasSubstr("LINEAR or COSINE"));
  EXPECT_THAT(error(kLeast, {"lora.rank.x=1"}), HasSubstr("has no settings inside"));
  EXPECT_THAT(error(kLeast, {"lora.rank.=1"}), HasSubstr("has no settings inside"));
  EXPECT_THAT(error(kLeast, {"lora.rank_pattern.=1"}), HasSubstr("needs a key"));
  EXPECT_THAT(error(kLeast, {"lora.rank_pattern=3"}), HasSubstr("KEY:VALUE"));
  EXPECT_THAT(error(kLeast, {"lora.rank_pattern.q=x"}), HasSubstr("expected a whole number"));
  EXPECT_EQ(error(kLeast, {"lora.rank=3", "lora.rank=4"}),
            "--set lora.rank: set a second time, expected each setting once");
  EXPECT_THAT(error(kLeast, {"=3"}), HasSubstr("there is no block \"\""));
  EXPECT_THAT(error(kLeast, {"lora.=3"}), HasSubstr("there is no setting \"\""));
}

TEST_F(ConfigTest, WorldMustFit) {
  auto world = [&](const Config& config, int64_t size) -> std::string {
    try {
      check_world(config, size);
      return "fits";
    } catch (const Error& e) {
      return replace_all(e.what(), file_.string(), "F");
    }
  };
  const Config config = load_more("parallel { tensor: 2 }\ntrain { global_batch_size: 8 }");
  EXPECT_EQ(world(config, 2), "fits");
  EXPECT_EQ(world(config, 8), "fits");
  EXPECT_EQ(world(config, 3),
            "F:4:12: parallel.tensor is 2 and there are 3 ranks, expected a divisor of the rank "
            "count (1, 3) or mpirun -n with a multiple of 2");
  EXPECT_EQ(world(config, 6),
            "F:5:9: train.global_batch_size is 8, expected a multiple of micro_batch_size x "
            "data-parallel degree = 2 x 3 = 6, for example 12");
  EXPECT_THAT(world(load(kLeast, {"parallel.tensor=5"}), 4), StartsWith("--set parallel.tensor: "));
}

TEST_F(ConfigTest, FilesThatAreNoConfiguration) {
  auto refused = [](const std::string& path) -> std::string {
    try {
      load_config(path);
      return "no error";
    } catch (const Error& e) {
      EXPECT_EQ(e.exit_status, 2);
      return e.what();
    }
  };
  EXPECT_EQ(refused(dir_ / "none"),
            (dir_ / "none").string() +
                ": cannot be read (No such file or directory), expected a run configuration file");
  EXPECT_THAT(refused(dir_), HasSubstr("is a folder"));
  EXPECT_THAT(error(std::string("\x00\x01\xff\xfe\x80garbage", 12)), StartsWith("F:1:"));
  EXPECT_THAT(error(std::string(2 << 20, '#')), HasSubstr("more than 1 MiB"));
  EXPECT_THAT(error("\xef\xbb\xbf" + std::string(kLeast) + "\r\n"),
              ::testing::AnyOf(StartsWith("F:1:1"), "no error"));
  EXPECT_EQ(error("# only a comment\r\n" + std::string(kLeast)), "no error");
}

}  // namespace
}  // namespace lorashard
