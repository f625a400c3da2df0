// What is found in the data before step 1: by any number of ranks and threads alike, once a file.
#include "trainer/run/data_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <fstream>
#include <mutex>
#include <thread>

#include "checkpoint/file_digest.h"
#include "parallel/threads.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_model.h"
#include "tests/trainer/golden_run.h"

namespace lorashard::test {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class DataCheck : public testing::Test {
 protected:
  DataCheck() : base_(BaseModel::open(write_tiny_model(dir_ / "model").dir.string())) {
    ::setenv("XDG_CACHE_HOME", (dir_ / "cache").c_str(), 1);
    run_.mutable_data()->set_format(RunConfig::Data::TEXT);
    run_.mutable_data()->set_seq_len(4);
  }

  void write(const std::vector<std::string>& lines) {
    std::ofstream out(file_);
    for (const std::string& line : lines) out << line << "\n";
    out.close();
    std::this_thread::sleep_for(std::chrono::milliseconds(40));  // younger files: not remembered
  }

  // Each byte is a token.
  DatasetOptions options() {
    DatasetOptions o;
    o.format = run_.data().format();
    o.seq_len = run_.data().seq_len();
    o.long_sequences = run_.data().long_sequences();
    o.append_eos = false;
    o.vocab_size = base_->config().vocab_size;
    o.encode = [this](std::string_view text, std::vector<TextSpan>* spans) {
      ++encoded_;
      if (spans) spans->clear();
      for (size_t i = 0; spans && i < text.size(); ++i) {
        spans->push_back({int64_t(i), int64_t(i + 1)});
      }
      return std::vector<int32_t>(text.begin(), text.end());
    };
    return o;
  }

  std::vector<std::string> check(
      int ranks, int threads, const std::function<void()>& meanwhile = [] {}) {
    std::vector<std::string> notes;
    run_thread_ranks(ranks, [&](Communicator& world) {
      const Dataset data(file_.string(), options());
      Console silent(false), console(world.rank() == 0);
      world.barrier("opened");
      if (world.rank() == 0) meanwhile();
      world.barrier("changed");
      const auto mine = check_data(data, file_.string(), run_, *base_, {world, ranks, world.rank()},
                                   threads, world.rank() == 0 ? console : silent);
      if (world.rank() == 0) notes = mine;
    });
    return notes;
  }

  TempDir dir_;
  fs::path file_ = dir_ / "data.jsonl";
  std::unique_ptr<BaseModel> base_;
  RunConfig run_;
  std::atomic<int64_t> encoded_ = 0;
};

TEST_F(DataCheck, CountsOnceAndRemembersWhileNothingChanges) {
  std::vector<std::string> lines(100, R"({"prompt":"!","completion":"!!"})");
  lines[30] = lines[70] = R"({"prompt":"!!!!!","completion":"!"})";  // cut, and no label left
  lines[50] = R"({"prompt":"!!!","completion":"!!"})";               // cut
  lines[90] = R"({"prompt":"!","completion":""})";                   // no label to begin with
  run_.mutable_data()->set_format(RunConfig::Data::PROMPT_COMPLETION);
  const std::string name = file_.string();
  for (const auto& [ranks, threads] : {std::pair{1, 1}, {1, 3}, {3, 2}}) {
    SCOPED_TRACE(std::to_string(ranks) + " ranks, " + std::to_string(threads) + " threads");
    fs::remove_all(dir_ / "cache");
    write(lines);
    encoded_ = 0;
    const auto expected = ElementsAre(
        name + ": 3 of 100 sequences were cut to data.seq_len 4; first: " + name + ":31",
        name +
            ": 3 of 100 sequences have no label left (2 lost all to the cut to "
            "data.seq_len 4); first: " +
            name + ":31");
    EXPECT_THAT(check(ranks, threads), expected);
    EXPECT_EQ(encoded_, 100) << "each line, once";
    // At another number of ranks too, and beside the digest of the same file.
    EXPECT_EQ(cached_file_digest(name), sha256_file(file_));
    EXPECT_THAT(check(4 - ranks, 1), expected);
    EXPECT_EQ(encoded_, 100);
  }
  run_.mutable_data()->set_seq_len(8);
  EXPECT_THAT(check(1, 1), ElementsAre(HasSubstr("1 of 100 sequences have no label left (0 lost")));
  EXPECT_EQ(encoded_, 200) << "another seq_len is another question";
  lines[0] = lines[90];
  write(lines);
  EXPECT_THAT(check(1, 1), ElementsAre(HasSubstr("2 of 100 sequences have no label")));
}

TEST_F(DataCheck, NamesTheLowestBadLine) {
  std::vector<std::string> lines(200, R"({"text":"!!!"})");
  lines[61] = lines[62] = lines[150] = R"({"text":"!!!!!"})";
  lines[120] = R"({"text":7})";
  run_.mutable_data()->set_long_sequences(RunConfig::Data::REFUSE);
  write(lines);
  for (const auto& [ranks, threads] : {std::pair{1, 1}, {1, 4}, {3, 2}, {4, 1}}) {
    expect_error(kExitInput, {file_.string() + ":62: a sequence of 5 tokens"},
                 [&, r = ranks, t = threads] { check(r, t); });
  }
}

TEST_F(DataCheck, RefusesAFileWithoutALabelAndOneThatChanges) {
  write({R"({"text":"!"})", R"({"text":"!"})"});  // a first token has none before it
  for (int again = 0; again < 2; ++again) {
    expect_error(kExitInput, {file_.string() + ": none of its 2 sequences has a label left (0 "},
                 [&] { check(2, 1); });
  }
  write({R"({"text":"!!!"})"});
  expect_error(kExitInput, {file_.string(), "was changed while it was read"},
               [&] { check(2, 1, [&] { write({R"({"text":"!!!!"})"}); }); });
}

// 14 lines in batches of 2, those of the third batch all masked: the step is counted and makes
// no update, as if it were not there, and a resume over it changes nothing.
TEST(StepWithoutLabels, IsCountedAndSkipped) {
  const TempDir dir;
  std::istringstream all(read_text(golden("peft/llama31/data.jsonl")));
  std::ofstream with(dir / "with.jsonl"), without(dir / "without.jsonl");
  int n = 0;
  for (std::string line; std::getline(all, line); ++n) {
    if (n == 4)
      with << R"({"input_ids":[5,6],"labels":[5,-100]})"
              "\n"
              R"({"input_ids":[9,8,7],"labels":[-100,-100,-100]})"
              "\n";
    with << line << "\n";
    without << line << "\n";
  }
  with.close();
  without.close();
  const auto train = [&](const std::string& data, int steps, const std::string& run, bool resume,
                         int stop_after) {
    return run_golden(
        "llama31", dir / run, 1, 2,
        {"data.train=" + (dir / data).string(), "train.steps=" + std::to_string(steps),
         "train.global_batch_size=2", "train.micro_batch_size=1", "schedule.kind=CONSTANT",
         "schedule.warmup_steps=0"},
        resume, stop_after);
  };
  const RunResult expected = train("without.jsonl", 6, "without", false, 0);
  const RunResult skipped = train("with.jsonl", 7, "with", false, 0);
  EXPECT_EQ(adapter_distance(skipped.adapter, expected.adapter), 0);
  ASSERT_EQ(skipped.metrics.size(), 7u);
  const nlohmann::json& line = skipped.metrics[2];
  EXPECT_EQ(line.at("step"), 3);
  EXPECT_TRUE(line.at("loss").is_null());
  EXPECT_EQ(line.at("counted_tokens"), 0);
  EXPECT_EQ(line.at("tokens"), 5);
  EXPECT_EQ(line.at("grad_norm"), 0);
  for (const int stop_after : {2, 3}) {
    const std::string run = "run" + std::to_string(stop_after);
    train("with.jsonl", 7, run, false, stop_after);
    EXPECT_EQ(adapter_distance(train("with.jsonl", 7, run, true, 0).adapter, expected.adapter), 0);
  }
}

}  // namespace
}  // namespace lorashard::test
