// What the simulator notices in kernels.
#include <cmath>

#include "tests/cudasim/tests/fixture.h"

namespace cudasim {
namespace {

using testing::HasSubstr;

class Kernels : public SimulatorTest {
 protected:
  // Runs the kernel and expects a violation whose text says `what` and where it was launched.
  void expect_violation(Kernel kernel, const char* what, int threads = 128) {
    ASSERT_EQ(run(kernel, y, nullptr, 0, kN, threads, stream), cudaSuccess);
    EXPECT_EQ(cudaStreamSynchronize(stream), cudaErrorLaunchFailure);
    EXPECT_THAT(cudaGetErrorString(cudaErrorLaunchFailure), HasSubstr(what));
    // As on a device, the error stays.
    EXPECT_EQ(cudaStreamSynchronize(stream), cudaErrorLaunchFailure);
    EXPECT_EQ(run(Kernel::SCALE, y, y, 0, kN, 128, stream), cudaErrorLaunchFailure);
    EXPECT_THAT(take_violations(), HasSubstr(what));
    cudaGetLastError();
  }
  // The sanitizers end the program at the access itself.
  void expect_bad_access(Kernel kernel, const char* what, int threads = 128) {
    if (!kAsan) return expect_violation(kernel, what, threads);
    EXPECT_DEATH(
        {
          (void)run(kernel, y, nullptr, 0, kN, threads, stream);
          cudaStreamSynchronize(stream);
        },
        "AddressSanitizer|out of bounds");
  }
};

TEST_F(Kernels, RightOnesRun) {
  std::vector<float> x(kN), want(kN);
  for (int i = 0; i < kN; ++i) x[size_t(i)] = float(i);
  float* device_x = floats(kN);
  fill(device_x, x);
  for (const Order order : {Order::FORWARD, Order::REVERSE, Order::RANDOM})
    for (const bool reverse : {false, true}) {
      settings().threads = order;
      settings().reverse_blocks = reverse;
      ASSERT_EQ(cudaMemsetAsync(y, 0, kN * sizeof(float), stream), cudaSuccess);
      ASSERT_EQ(run(Kernel::SCALE, y, device_x, 2, kN, 100, stream), cudaSuccess);
      for (int i = 0; i < kN; ++i) want[size_t(i)] = 2 * float(i);
      EXPECT_EQ(host(y, kN), want);
      ASSERT_EQ(run(Kernel::WITH_BARRIER, y, nullptr, 0, kN, kN, stream), cudaSuccess);
      for (int i = 0; i < kN; ++i) want[size_t(i)] = float(kN - 1 - i);
      EXPECT_EQ(host(y, kN), want);
    }
}

TEST_F(Kernels, MissingBarrierShowsInEveryOrder) {
  for (const Order order : {Order::FORWARD, Order::REVERSE, Order::RANDOM}) {
    settings().threads = order;
    ASSERT_EQ(run(Kernel::MISSING_BARRIER, y, nullptr, 0, kN, kN, stream), cudaSuccess);
    int unwritten = 0;
    for (const float v : host(y, kN)) unwritten += std::isnan(v);
    EXPECT_GT(unwritten, 0);
  }
}

TEST_F(Kernels, WritesOutsideOfAnAllocation) {
  expect_bad_access(Kernel::WRITES_BEHIND, "behind a device allocation of 1024 bytes");
  expect_bad_access(Kernel::WRITES_BEFORE, "before a device allocation of 1024 bytes");
}

TEST_F(Kernels, WritesPastSharedMemory) {
  expect_bad_access(Kernel::SHARED_BEHIND, "past the end of shared memory");
  expect_bad_access(Kernel::DYNAMIC_BEHIND, "past the end of shared memory");
}

TEST_F(Kernels, BarriersThatNotAllReach) {
  for (const Order order : {Order::FORWARD, Order::REVERSE, Order::RANDOM}) {
    settings().threads = order;
    expect_violation(Kernel::DIVERGENT_BARRIER, "__syncthreads");
    expect_violation(Kernel::TWO_BARRIERS, "threads at different __syncthreads");
  }
}

TEST_F(Kernels, WarpCollectivesThatDoNotMeet) {
  for (const Order order : {Order::FORWARD, Order::REVERSE, Order::RANDOM}) {
    settings().threads = order;
    expect_violation(Kernel::CALLER_NOT_IN_MASK, "whose mask leaves it out", 32);
    expect_violation(Kernel::LANE_EXITED, "a", 32);
    expect_violation(Kernel::DIVERGENT_SHUFFLES, "at different warp collectives", 32);
  }
}

TEST_F(Kernels, SharedMemoryStartsAsNaN) {
  ASSERT_EQ(run(Kernel::UNWRITTEN_SHARED, y, nullptr, 0, kN, kN, stream), cudaSuccess);
  const std::vector<float> got = host(y, kN);
  EXPECT_TRUE(std::isnan(got[0]));
  EXPECT_EQ(got[1], 1);
}

TEST_F(Kernels, ThreadsRunInTheOrderAskedFor) {
  const auto order = [&](Order asked) {
    settings().threads = asked;
    EXPECT_EQ(cudaMemsetAsync(y, 0, kN * sizeof(float), stream), cudaSuccess);
    EXPECT_EQ(run(Kernel::START_ORDER, y, nullptr, 0, 64, 64, stream), cudaSuccess);
    return host(y, 64);
  };
  std::vector<float> forward(64), reverse(64);
  for (int i = 0; i < 64; ++i) forward[size_t(i)] = float(i), reverse[size_t(i)] = float(63 - i);
  EXPECT_EQ(order(Order::FORWARD), forward);
  EXPECT_EQ(order(Order::REVERSE), reverse);
  const std::vector<float> random = order(Order::RANDOM);
  EXPECT_NE(random, forward);
  EXPECT_NE(random, reverse);
  EXPECT_THAT(random, testing::UnorderedElementsAreArray(forward));
}

TEST_F(Kernels, ShufflesFollowTheirDefinition) {
  for (const Order order : {Order::FORWARD, Order::REVERSE, Order::RANDOM}) {
    settings().threads = order;
    ASSERT_EQ(run(Kernel::SHUFFLES, y, nullptr, 0, kN, 32, stream), cudaSuccess);
    const std::vector<float> got = host(y, 7 * 32);
    for (int t = 0; t < 32; ++t) {
      const auto row = [&](int r) { return got[size_t(r * 32 + t)]; };
      EXPECT_EQ(row(0), float(t ^ 1));
      EXPECT_EQ(row(1), float(t % 8 + 3 < 8 ? t + 3 : t));
      EXPECT_EQ(row(2), float(t % 8 >= 3 ? t - 3 : t));
      EXPECT_EQ(row(3), float(t / 16 * 16 + 9));
      EXPECT_EQ(row(4), 8);
      if (t < 8) {
        EXPECT_EQ(row(5), float(t + 8));
      }
      if (t >= 8 && t < 16) {
        EXPECT_TRUE(std::isnan(row(5)));
      }
      EXPECT_EQ(row(6), float(t ^ 16) + 2.25f);
    }
  }
}

TEST_F(Kernels, LaunchesBeyondTheLimitsAreRefused) {
  EXPECT_EQ(run(Kernel::WITH_BARRIER, y, nullptr, 0, kN, 1025, stream),
            cudaErrorInvalidConfiguration);
  EXPECT_EQ(run(Kernel::SCALE, y, y, 0, 0, 128, stream), cudaErrorInvalidConfiguration);
  EXPECT_EQ(run(Kernel::SCALE, y, y, 0, kN, 128, stream, 49 << 10), cudaErrorInvalidValue);
  EXPECT_EQ(allow_dynamic_shared(228 << 10), cudaErrorInvalidValue);
  EXPECT_EQ(allow_dynamic_shared(100 << 10), cudaSuccess);
  EXPECT_EQ(run(Kernel::SCALE, y, y, 0, kN, 128, stream, 49 << 10), cudaSuccess);
  EXPECT_EQ(run(Kernel::SCALE, y, y, 0, kN, 128, nullptr), cudaErrorInvalidResourceHandle);
  cudaGetLastError();
}

// What UndefinedBehaviorSanitizer says; without it x86 reads what a device would refuse.
#ifdef __SANITIZE_ADDRESS__
TEST_F(Kernels, UnalignedVectors) {
  EXPECT_DEATH(
      {
        (void)run(Kernel::UNALIGNED_VECTOR, y, nullptr, 0, kN, 1, stream);
        cudaStreamSynchronize(stream);
      },
      "misaligned");
}
#endif

TEST_F(Kernels, AViolationThatNobodyTakesFailsTheProgram) {
  EXPECT_EXIT(
      {
        (void)run(Kernel::TWO_BARRIERS, y, nullptr, 0, kN, 128, stream);
        cudaStreamSynchronize(stream);
        std::exit(0);
      },
      testing::ExitedWithCode(kUntakenStatus), "nobody expected");
}

}  // namespace
}  // namespace cudasim
