#include "parallel/shard.h"

#include <gtest/gtest.h>

#include <set>

namespace lorashard {
namespace {

TEST(Shard, PartsCoverEverythingOnceAndAreBalanced) {
  for (const int64_t n : {1, 3, 9, 32, 100, 1536, 49152, 151936}) {
    for (int ranks = 1; ranks <= 16; ++ranks) {
      int64_t end = 0;
      for (int r = 0; r < ranks; ++r) {
        const Range part = split_units(n, r, ranks);
        EXPECT_EQ(part.begin, end);
        EXPECT_LE(part.size(), n / ranks + 1);
        EXPECT_GE(part.size(), n / ranks);
        end = part.end;
        const Range features = split_features(n, r, ranks);
        EXPECT_EQ(features.begin, r == 0 ? 0 : split_features(n, r - 1, ranks).end);
        EXPECT_TRUE(r < ranks - 1 || features.end == n);
      }
      EXPECT_EQ(end, n);
    }
  }
}

// So that a reproducible all-reduce over the parts at TP=8 can be formed at TP=1, 2 and 4.
TEST(Shard, BoundariesAtEveryDegreeAreBoundariesAtItsMultiples) {
  for (const int64_t n : {9, 32, 100, 1000, 1536, 8960, 49152}) {
    std::set<int64_t> at8;
    for (int r = 0; r < 8; ++r) at8.insert(split_features(n, r, 8).begin);
    for (const int ranks : {1, 2, 4}) {
      for (int r = 0; r < ranks; ++r) {
        EXPECT_TRUE(at8.contains(split_features(n, r, ranks).begin)) << n << " at " << ranks;
      }
    }
  }
}

TEST(Shard, RanksHoldTheKeyValueHeadsOfTheirQueryHeads) {
  // SmolLM2-135M: 9 query heads, 3 key/value heads; at TP=2 the middle one is on both ranks.
  EXPECT_EQ(split_heads(9, 3, 0, 2).query, (Range{0, 4}));
  EXPECT_EQ(split_heads(9, 3, 0, 2).kv, (Range{0, 2}));
  EXPECT_EQ(split_heads(9, 3, 1, 2).query, (Range{4, 9}));
  EXPECT_EQ(split_heads(9, 3, 1, 2).kv, (Range{1, 3}));
  // More ranks than key/value heads: each rank one query head and its key/value head.
  for (int r = 0; r < 9; ++r) EXPECT_EQ(split_heads(9, 3, r, 9).kv, (Range{r / 3, r / 3 + 1}));
}

}  // namespace
}  // namespace lorashard
