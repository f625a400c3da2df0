// When a wait for peers ends, on a made-up clock.
#include "parallel/peer_watch.h"

#include <gtest/gtest.h>

namespace lorashard {
namespace {

constexpr double kTimeout = 10;
const std::vector<int> kAll{0, 1, 2};

// Rank 0 of three; the others send a heartbeat a second.
struct Watch : PeerWatch {
  Watch() : PeerWatch(0, 3) {}
  // From `begin` to `end`: rank 0 waits in call 5 of group 1, the others do as they say.
  bool ends(double begin, double end, const Heartbeat* one, const Heartbeat* two) {
    for (double now = begin; now <= end; ++now) {
      if (one) heard(1, *one, now);
      if (two) heard(2, *two, now);
      observe_self({.progress = 9, .group = 1, .call = 5}, now);
      if (must_end(kAll, kTimeout, now)) return true;
    }
    return false;
  }
};

const Heartbeat kWorks{.progress = 8}, kWaitsHere{.progress = 9, .group = 1, .call = 5},
    kWaitsElsewhere{.progress = 9, .group = 2, .call = 3};

TEST(PeerWatch, ARankThatIsHeardOfMayTakeAsLongAsItLikes) {
  Watch watch;
  EXPECT_FALSE(watch.ends(0, 1000, &kWorks, &kWaitsHere));
  EXPECT_EQ(watch.awaited(kAll, kTimeout, 1000).elsewhere, std::vector<int>{1});
  EXPECT_EQ(watch.waited(1000), 1000);
}

TEST(PeerWatch, ASilentRankEndsTheWaitAndIsNamed) {
  Watch watch;
  EXPECT_FALSE(watch.ends(0, 100, &kWorks, &kWaitsHere));
  EXPECT_FALSE(watch.ends(101, 109, nullptr, &kWaitsHere));
  EXPECT_TRUE(watch.ends(110, 110, nullptr, &kWaitsHere));
  const auto awaited = watch.awaited(kAll, kTimeout, 110);
  EXPECT_EQ(awaited.silent, std::vector<int>{1});
  EXPECT_EQ(awaited.silent_s, 10);
  EXPECT_TRUE(awaited.elsewhere.empty());
  EXPECT_FALSE(awaited.never_heard);
}

TEST(PeerWatch, ASilentRankEndsNothingThatDoesNotWaitForIt) {
  Watch watch;
  watch.heard(1, kWorks, 0);
  watch.heard(2, kWorks, 0);
  watch.observe_self({.progress = 10}, 100);
  EXPECT_FALSE(watch.must_end({}, kTimeout, 100)) << "it works itself";
  // A wait that has only begun.
  watch.observe_self({.progress = 11, .group = 1, .call = 6}, 101);
  EXPECT_FALSE(watch.must_end(kAll, kTimeout, 105));
  EXPECT_TRUE(watch.must_end(kAll, kTimeout, 112));
  EXPECT_FALSE(watch.must_end(kAll, 0, 1e9)) << "0 waits for ever";
}

TEST(PeerWatch, RanksThatAllWaitForEachOtherEnd) {
  Watch watch;
  EXPECT_FALSE(watch.ends(0, 9, &kWaitsElsewhere, &kWaitsHere));
  EXPECT_TRUE(watch.ends(10, 11, &kWaitsElsewhere, &kWaitsHere));
  EXPECT_EQ(watch.awaited(kAll, kTimeout, 11).elsewhere, std::vector<int>{1});
  EXPECT_TRUE(watch.awaited(kAll, kTimeout, 11).silent.empty());
}

TEST(PeerWatch, ARankThatIsNeverHeardOfCountsAsSilentFromTheStart) {
  Watch watch;
  EXPECT_EQ(watch.never_heard(), (std::vector<int>{1, 2}));
  EXPECT_FALSE(watch.ends(0, 9, nullptr, &kWaitsHere));
  EXPECT_EQ(watch.never_heard(), std::vector<int>{1});
  EXPECT_TRUE(watch.ends(10, 10, nullptr, &kWaitsHere));
  EXPECT_TRUE(watch.awaited(kAll, kTimeout, 10).never_heard);
}

TEST(PeerWatch, ARankThatGaveUpEndsTheOthersAndOneThatIsDoneDoesNot) {
  Watch watch;
  watch.heard(1, {.leaving = true}, 0);
  EXPECT_FALSE(watch.ends(0, 100, nullptr, &kWorks));
  watch.heard(2, {.progress = 9, .group = 1, .call = 5, .lost = true}, 101);
  watch.observe_self({.progress = 12}, 101);
  EXPECT_TRUE(watch.must_end({}, kTimeout, 101));
}

}  // namespace
}  // namespace lorashard
