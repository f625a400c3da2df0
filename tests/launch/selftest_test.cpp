// selftest: that it passes where the kernels are right, says what it skipped, and fails where a
// result is wrong.
#include "launch/selftest/compare.h"

#include <cmath>
#include <limits>

#include "kernels/stream.h"
#include "launch/selftest/kernel_checks.h"
#include "launch/selftest/timings.h"
#include "tests/launch/scene.h"

namespace lorashard::test {
namespace {

using selftest::Check;
using selftest::largest_error;
using selftest::Tally;
using selftest::Verdict;

Outcome self_tested(int ranks, const std::vector<std::string>& more = {}) {
  std::vector<std::string> command;
  if (ranks > 1) command = {MPIEXEC, "-n", std::to_string(ranks)};
  command.insert(command.end(), {kLorashard, "selftest"});
  command.insert(command.end(), more.begin(), more.end());
  return run({.arguments = command, .time_limit_s = 300});
}

size_t lines_beginning(const std::string& text, const std::string& start) {
  size_t n = 0;
  for (const std::string& line : lines_with(text, start)) n += line.starts_with(start);
  return n;
}

TEST(SelfTest, PassesAndCountsWhatItSkips) {
  const Outcome done = self_tested(1);
  ASSERT_EQ(done.status, 0) << done.text();
  const size_t passed = lines_beginning(done.out, "PASS "),
               skipped = lines_beginning(done.out, "SKIP ");
  EXPECT_EQ(lines_beginning(done.out, "FAIL "), 0u) << done.text();
  const std::string summary =
      std::to_string(passed) + " passed, 0 failed, " + std::to_string(skipped) + " skipped\n";
  EXPECT_TRUE(done.out.ends_with("\n" + summary)) << done.text();
  for (const selftest::KernelCheck& k : selftest::kernel_checks())
    EXPECT_GE(lines_beginning(done.out, "PASS " + k.name + " "), 1u) << k.name;
  const size_t checks = selftest::kernel_checks().size();
  EXPECT_GE(passed, checks);
  if (cuda_devices() == 0) {
    // Each one of the other backend is listed, with the reason.
    const std::string why = built_with_cuda() ? "no CUDA device answers here"
                                              : "this program was built without the CUDA backend";
    EXPECT_GE(lines_with(done.out, why).size(), checks) << done.text();
    EXPECT_EQ(passed, checks) << done.text();
  }
  EXPECT_EQ(lines_with(done.out, "start it with mpirun").size() > 0, true) << done.text();
}

TEST(SelfTest, SumsOverTheRanks) {
  const Outcome done = self_tested(2);
  ASSERT_EQ(done.status, 0) << done.text();
  EXPECT_GE(lines_beginning(done.out, "PASS sum over the ranks"), 2u) << done.text();
  EXPECT_EQ(lines_with(done.out, " passed, ").size(), 1u) << done.text();
}

TEST(SelfTest, HasHelpAndTakesNothingElse) {
  EXPECT_EQ(self_tested(1, {"--help"}).status, 0);
  EXPECT_EQ(self_tested(1, {"everything"}).status, 2);
}

TEST(SelfTest, AWrongResultFails) {
  constexpr double kInfinite = std::numeric_limits<double>::infinity();
  const std::vector<double> want{3, -4, 0, 5};
  EXPECT_EQ(largest_error(want, want), 0);
  const double size = std::sqrt((9 + 16 + 25) / 4.0);
  EXPECT_DOUBLE_EQ(largest_error({3, -4, 0.5, 5}, want), 0.5 / size);
  EXPECT_DOUBLE_EQ(largest_error({3, -3, 0, 5}, want), 1 / (4 + size));
  EXPECT_EQ(largest_error({3, -4, 0}, want), kInfinite);
  EXPECT_EQ(largest_error({3, -4, std::nan(""), 5}, want), kInfinite);
  EXPECT_EQ(largest_error({0, 1e-30}, {0, 0}), kInfinite);
  EXPECT_EQ(largest_error({1, 1}, {1, std::nan("")}), kInfinite);

  Check c{"add", "CPU", "F32", 0, 1e-6, "", ""};
  EXPECT_EQ(c.verdict(), Verdict::PASS);
  c.error = 2e-6;
  EXPECT_EQ(c.verdict(), Verdict::FAIL);
  c.error = std::nan("");
  EXPECT_EQ(c.verdict(), Verdict::FAIL);
  c.error = 0;
  c.failure = "the device is gone";
  EXPECT_EQ(c.verdict(), Verdict::FAIL);
  EXPECT_NE(c.line().find("the device is gone"), std::string::npos);
  Check skipped{"add", "CUDA", "F32", 0, 1e-6, "no device", ""};
  EXPECT_EQ(skipped.verdict(), Verdict::SKIP);
  Tally tally;
  tally.count(c);
  tally.count(skipped);
  EXPECT_EQ(tally.line(), "0 passed, 1 failed, 1 skipped");
}

// What a check computes sees a wrong kernel: its results, moved by a twentieth, are out of
// tolerance for every kernel.
TEST(SelfTest, EveryCheckSeesAnErrorOfFivePercent) {
  Stream stream(1);
  for (const selftest::KernelCheck& k : selftest::kernel_checks()) {
    double good = 0, bad = 0;
    for (selftest::Part p : k.run(stream)) {
      good = std::max(good, largest_error(p.got, p.want));
      for (double& x : p.got) x = x * 1.05 + 1e-3;
      bad = std::max(bad, largest_error(p.got, p.want));
    }
    EXPECT_LE(good, k.tolerance) << k.name << " " << name_of(k.type);
    EXPECT_GT(bad, k.tolerance) << k.name << " " << name_of(k.type);
  }
}

// Names as the driver gives them.
TEST(SelfTest, TimingsStandBesideTheDevicesOwnDataSheet) {
  const auto sheet = [](const char* device) {
    const Machine* m = selftest::data_sheet(device);
    return m ? m->name : "none";
  };
  EXPECT_EQ(sheet("NVIDIA H100 80GB HBM3"), "h100-sxm");
  EXPECT_EQ(sheet("NVIDIA H200"), "h200-sxm");
  EXPECT_EQ(sheet("NVIDIA B200"), "b200");
  for (const char* other :
       {"NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA H200 NVL", "NVIDIA GB200",
        "NVIDIA A100-SXM4-80GB", "NVIDIA GeForce RTX 4090", "simulated", ""})
    EXPECT_EQ(sheet(other), "none") << other;
}

}  // namespace
}  // namespace lorashard::test
