// Batches are a function of (seed, step, rank): the same at any start, split and order of asking.
#include "trainer/data/batches.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <map>
#include <numeric>
#include <set>

namespace lorashard {
namespace {

using ::testing::ElementsAre;
namespace fs = std::filesystem;

TEST(Permuted, IsABijectionForEverySize) {
  for (int64_t n : {1,  2,   3,   4,   5,   7,    8,    9,    15,   16,   17,    31,   64,
                    65, 100, 255, 256, 257, 1000, 1023, 1024, 1025, 4097, 65536, 65537}) {
    for (uint64_t epoch : {0, 1, 7}) {
      std::vector<bool> seen(n);
      for (int64_t i = 0; i < n; ++i) {
        const int64_t j = permuted(i, n, 42, epoch);
        ASSERT_TRUE(0 <= j && j < n) << n;
        ASSERT_FALSE(seen[j]) << n;
        seen[j] = true;
      }
    }
  }
  const int64_t huge = int64_t{1} << 40;
  std::set<int64_t> values;
  for (int64_t i = 0; i < 1000; ++i) values.insert(permuted(i, huge + 1, 0, 0));
  EXPECT_EQ(values.size(), 1000u);
  EXPECT_GT(*values.rbegin(), huge / 2);
}

TEST(Permuted, DependsOnSeedAndEpoch) {
  auto order = [](uint64_t seed, uint64_t epoch) {
    std::vector<int64_t> out(50);
    for (int64_t i = 0; i < 50; ++i) out[i] = permuted(i, 50, seed, epoch);
    return out;
  };
  EXPECT_EQ(order(3, 1), order(3, 1));
  EXPECT_NE(order(3, 1), order(3, 2));
  EXPECT_NE(order(3, 1), order(4, 1));
}

// Where an index goes, and which follows it, are uniform over the epochs: chi-square below its
// 99.99 % point.
TEST(Permuted, IsUniform) {
  constexpr int64_t n = 10;
  constexpr int kEpochs = 20'000;
  std::array<std::array<int, n>, n> place{};
  std::array<int, n * n> pairs{};
  for (int epoch = 0; epoch < kEpochs; ++epoch) {
    for (int64_t i = 0; i < n; ++i) ++place[i][permuted(i, n, 1, epoch)];
    ++pairs[permuted(0, n, 1, epoch) * n + permuted(1, n, 1, epoch)];
  }
  for (int64_t i = 0; i < n; ++i) {
    double chi = 0;
    for (int count : place[i]) chi += (count - kEpochs / n) * double(count - kEpochs / n);
    EXPECT_LT(chi / (kEpochs / double(n)), 33.7) << i;  // 9 degrees of freedom
  }
  double chi = 0;
  const double expected = kEpochs / double(n * (n - 1));
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j)
      if (i != j) chi += (pairs[i * n + j] - expected) * (pairs[i * n + j] - expected) / expected;
  EXPECT_LT(chi, 146);  // 89 degrees of freedom
}

// Sequence i is i, i, …, (1 + i % 5 tokens); the first token is always masked.
class BatchesTest : public ::testing::Test {
 protected:
  BatchesTest() {
    file_ = fs::path(::testing::TempDir()) /
            ("batches_test_" + std::to_string(::getpid()) + "_" +
             ::testing::UnitTest::GetInstance()->current_test_info()->name() + ".jsonl");
  }
  ~BatchesTest() override { fs::remove(file_); }

  std::shared_ptr<const Dataset> sequences(int64_t n) {
    std::ofstream out(file_);
    for (int64_t i = 0; i < n; ++i) {
      out << "{\"input_ids\":[" << i;
      for (int64_t t = 0; t < i % 5; ++t) out << ',' << i;
      out << "]}\n";
    }
    out.close();
    DatasetOptions options;
    options.format = RunConfig::Data::TOKENS;
    options.vocab_size = 1000;
    return Dataset::open(file_.string(), options);
  }
  static std::vector<int64_t> first_ids(const MicroBatch& b) {
    std::vector<int64_t> ids;
    for (size_t s = 0; s + 1 < b.offsets.size(); ++s) ids.push_back(b.ids[b.offsets[s]]);
    return ids;
  }

  fs::path file_;
};

TEST_F(BatchesTest, SequencesLieEndToEndWithShiftedLabels) {
  std::ofstream(file_) << "{\"input_ids\":[5,6,7],\"labels\":[5,-100,9]}\n{\"input_ids\":[8]}\n"
                          "{\"input_ids\":[1,2]}\n";
  DatasetOptions options;
  options.format = RunConfig::Data::TOKENS;
  options.vocab_size = 10;
  const BatchStream stream(Dataset::open(file_.string(), options), 0, false, 3, 3, 0, 1);
  const MicroBatch b = stream.micro_batch(1, 0);  // places 3, 4, 5: the second epoch
  EXPECT_THAT(b.ids, ElementsAre(5, 6, 7, 8, 1, 2));
  EXPECT_THAT(b.labels, ElementsAre(-100, 9, -100, -100, 2, -100));
  EXPECT_THAT(b.positions, ElementsAre(0, 1, 2, 0, 0, 1));
  EXPECT_THAT(b.offsets, ElementsAre(0, 3, 4, 6));
  EXPECT_EQ(b.unmasked, 2);
  const uint64_t unit = 1 << 20;
  EXPECT_THAT(b.row_keys,
              ElementsAre(3 * unit, 3 * unit + 1, 3 * unit + 2, 4 * unit, 5 * unit, 5 * unit + 1));
}

TEST_F(BatchesTest, EveryEpochVisitsEverySequenceOnce) {
  const auto data = sequences(23);
  for (bool shuffle : {false, true}) {
    const BatchStream stream(data, 9, shuffle, 6, 2, 0, 1);
    std::vector<int64_t> seen;
    for (int64_t step = 0; seen.size() < 4 * 23; ++step)
      for (const MicroBatch& b : stream.batch(step))
        for (int64_t id : first_ids(b)) seen.push_back(id);
    std::vector<int64_t> all(23);
    std::iota(all.begin(), all.end(), 0);
    for (int epoch = 0; epoch < 4; ++epoch) {
      const std::vector<int64_t> visited(seen.begin() + 23 * epoch,
                                         seen.begin() + 23 * (epoch + 1));
      EXPECT_EQ(visited == all, !shuffle) << epoch;
      EXPECT_THAT(visited, ::testing::UnorderedElementsAreArray(all));
    }
  }
}

TEST_F(BatchesTest, AnyStepCanBeAskedForAtAnyTime) {
  const auto data = sequences(17);
  const BatchStream first(data, 5, true, 4, 2, 0, 1), again(data, 5, true, 4, 2, 0, 1);
  std::map<int64_t, std::vector<MicroBatch>> run;
  for (int64_t step = 0; step < 20; ++step) run[step] = first.batch(step);
  for (int64_t step : {19, 3, 11, 0, 7}) {
    for (int64_t m = 0; m < again.micro_batches(step); ++m) {
      const MicroBatch b = again.micro_batch(step, m);
      EXPECT_EQ(b.ids, run[step][m].ids);
      EXPECT_EQ(b.labels, run[step][m].labels);
      EXPECT_EQ(b.row_keys, run[step][m].row_keys);
    }
  }
}

// Ids and row keys of a step, in order of rank, do not depend on the split.
TEST_F(BatchesTest, DataParallelRanksShareTheSameBatch) {
  const auto data = sequences(31);
  auto step_of = [&](int64_t step, int64_t dp, int64_t micro) {
    std::pair<std::vector<int32_t>, std::vector<uint64_t>> all;
    for (int64_t rank = 0; rank < dp; ++rank) {
      const BatchStream stream(data, 1, true, 12, micro, rank, dp);
      EXPECT_EQ(stream.micro_batches(step), 12 / (micro * dp));
      for (const MicroBatch& b : stream.batch(step)) {
        all.first.insert(all.first.end(), b.ids.begin(), b.ids.end());
        all.second.insert(all.second.end(), b.row_keys.begin(), b.row_keys.end());
      }
    }
    return all;
  };
  for (int64_t step : {0, 2, 5}) {
    const auto expected = step_of(step, 1, 12);
    EXPECT_EQ(std::set<uint64_t>(expected.second.begin(), expected.second.end()).size(),
              expected.second.size());
    for (int64_t dp : {1, 2, 3, 6})
      for (int64_t micro : {1, 2}) EXPECT_EQ(step_of(step, dp, micro), expected);
  }
}

// The last step of an epoch has what is left, at any split: some ranks less, some nothing.
TEST_F(BatchesTest, StepsEndWithTheEpochWhenAsked) {
  for (int64_t n : {1, 5, 6, 23}) {
    const auto data = sequences(n);
    const int64_t per_epoch = (n + 5) / 6;
    for (int64_t dp : {1, 2, 3, 6}) {
      std::set<uint64_t> keys;
      for (int64_t epoch = 0; epoch < 3; ++epoch) {
        std::vector<int64_t> seen;
        for (int64_t step = epoch * per_epoch; step < (epoch + 1) * per_epoch; ++step) {
          int64_t count = 0;
          for (int64_t rank = 0; rank < dp; ++rank) {
            const BatchStream stream(data, 9, true, 6, 1, rank, dp, {}, true);
            for (const MicroBatch& b : stream.batch(step)) {
              EXPECT_GT(b.ids.size(), 0u);
              for (int64_t id : first_ids(b)) seen.push_back(id);
              count += int64_t(b.offsets.size()) - 1;
              keys.insert(b.row_keys.begin(), b.row_keys.end());
            }
            EXPECT_EQ(stream.sequences(step), std::min<int64_t>(6, n - step % per_epoch * 6));
            EXPECT_DOUBLE_EQ(
                stream.epoch_after(step),
                double(epoch) + std::min(1.0, double(step % per_epoch + 1) * 6 / double(n)));
          }
          EXPECT_EQ(count, std::min<int64_t>(6, n - step % per_epoch * 6));
        }
        std::vector<int64_t> all(static_cast<size_t>(n));
        std::iota(all.begin(), all.end(), 0);
        EXPECT_THAT(seen, ::testing::UnorderedElementsAreArray(all)) << n << " by " << dp;
      }
      EXPECT_EQ(int64_t(keys.size()) % 3, 0) << "places are never used twice";
    }
  }
}

// From any place on, also with another batch: the rest of the epoch first.
TEST_F(BatchesTest, EpochsGoOnFromAnyPlace) {
  const auto data = sequences(23);
  EXPECT_EQ(steps_of_epochs(2, 23, 6), 8);
  EXPECT_EQ(steps_of_epochs(2.5, 23, 6), 10);
  EXPECT_EQ(steps_of_epochs(0.1, 23, 6), 1);
  EXPECT_EQ(steps_of_epochs(3, 4, 6), 3);
  // Five steps of 6, 6, 6, 5, 6; then by 4 from place 29, 6 into the second epoch.
  const StreamPosition at{5, 29, 0};
  EXPECT_EQ(steps_of_epochs(2, 23, 4, at), 10);
  EXPECT_EQ(steps_of_epochs(3, 23, 4, at), 16);
  EXPECT_EQ(steps_of_epochs(1, 23, 4, at), 4) << "more is visited already";
  EXPECT_EQ(steps_of_epochs(1, 23, 4, {5, 29, 29}), 11) << "other data begins there";
  const BatchStream whole(data, 3, true, 6, 6, 0, 1, {}, true),
      rest(data, 3, true, 4, 4, 0, 1, at, true);
  std::vector<int64_t> seen, want;
  for (int64_t step = 5; step < 16; ++step)
    for (int64_t id : first_ids(rest.micro_batch(step, 0))) seen.push_back(id);
  for (int64_t step = 5; step < 12; ++step)
    for (int64_t id : first_ids(whole.micro_batch(step, 0))) want.push_back(id);
  EXPECT_EQ(seen, want);
}

TEST_F(BatchesTest, EvaluationCoversTheFileOnceAtAnySplit) {
  for (int64_t n : {1, 2, 7, 24}) {
    const auto data = sequences(n);
    for (int64_t dp : {1, 2, 3, 5}) {
      std::vector<int64_t> seen;
      for (int64_t rank = 0; rank < dp; ++rank) {
        const EvalBatches batches(data, 4, rank, dp);
        for (int64_t m = 0; m < batches.micro_batches(); ++m) {
          const MicroBatch b = batches.micro_batch(m);
          EXPECT_GT(b.ids.size(), 0u);
          EXPECT_LE(b.offsets.size(), 5u);
          for (int64_t id : first_ids(b)) seen.push_back(id);
        }
      }
      std::vector<int64_t> all(n);
      std::iota(all.begin(), all.end(), 0);
      EXPECT_EQ(seen, all) << n << " sequences, " << dp << " ranks";
    }
  }
}

}  // namespace
}  // namespace lorashard
