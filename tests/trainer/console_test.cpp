#include "trainer/run/console.h"

#include <gtest/gtest.h>

namespace lorashard::test {
namespace {

TEST(LongWork, SpeaksOnlyWhereItTakesLong) {
  Console console(true);
  testing::internal::CaptureStdout();
  EXPECT_EQ(LongWork(console, "quick", std::chrono::hours(1)).end(), "");
  {
    LongWork work(console, "slow", std::chrono::milliseconds(0));
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    const std::string took = work.end();
    EXPECT_TRUE(took.empty() || took.starts_with(" (took ")) << took;
    EXPECT_EQ(work.end(), "") << "told once";
  }
  const std::string out = testing::internal::GetCapturedStdout();
  EXPECT_TRUE(out == "slow\n" || out.empty()) << out;
}

}  // namespace
}  // namespace lorashard::test
