// What the simulator shows of host code that does not wait, or reaches where it must not.
#include <cmath>
#include <csignal>
#include <cstring>

#include "tests/cudasim/tests/fixture.h"

namespace cudasim {
namespace {

using testing::Each;
using testing::HasSubstr;

class Host : public SimulatorTest {
 protected:
  void SetUp() override {
    SimulatorTest::SetUp();
    ASSERT_EQ(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking), cudaSuccess);
    ASSERT_EQ(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), cudaSuccess);
    x = floats(kN);
  }
  void TearDown() override {
    cudaStreamDestroy(other);
    cudaEventDestroy(event);
    SimulatorTest::TearDown();
  }

  cudaStream_t other = nullptr;
  cudaEvent_t event = nullptr;
  float* x = nullptr;
  const std::vector<float> ones = std::vector<float>(kN, 1.0f);
};

MATCHER(IsNaN, "is NaN") { return std::isnan(arg); }

TEST_F(Host, WorkOfTwoStreamsIsOrderedByEventsOnly) {
  for (const bool with_event : {false, true}) {
    ASSERT_EQ(cudaMemsetAsync(y, 0, kN * sizeof(float), stream), cudaSuccess);
    ASSERT_EQ(cudaMemsetAsync(x, 0xff, kN * sizeof(float), stream), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    ASSERT_EQ(cudaMemcpyAsync(x, ones.data(), kN * sizeof(float), cudaMemcpyHostToDevice, other),
              cudaSuccess);
    if (with_event) {
      ASSERT_EQ(cudaEventRecord(event, other), cudaSuccess);
      ASSERT_EQ(cudaStreamWaitEvent(stream, event, 0), cudaSuccess);
    }
    ASSERT_EQ(run(Kernel::SCALE, y, x, 3, kN, 64, stream), cudaSuccess);
    if (with_event)
      EXPECT_THAT(host(y, kN), Each(3.0f));
    else
      EXPECT_THAT(host(y, kN), Each(IsNaN()));
    ASSERT_EQ(cudaStreamSynchronize(other), cudaSuccess);
  }
}

TEST_F(Host, AnEventIsPassedWhenItsStreamCameToIt) {
  ASSERT_EQ(cudaEventRecord(event, other), cudaSuccess);
  fill(x, ones);  // on the first stream
  ASSERT_EQ(cudaEventSynchronize(event), cudaSuccess);
  EXPECT_EQ(cudaEventQuery(event), cudaSuccess);
}

TEST_F(Host, ReadingWithoutSynchronisingGivesNaN) {
  fill(y, ones);
  std::vector<float> h(kN, 5.0f);
  ASSERT_EQ(cudaMemcpyAsync(h.data(), y, kN * sizeof(float), cudaMemcpyDeviceToHost, stream),
            cudaSuccess);
  EXPECT_THAT(h, Each(IsNaN()));
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_THAT(h, Each(1.0f));
}

TEST_F(Host, NewMemoryIsNaN) { EXPECT_THAT(host(floats(100), 100), Each(IsNaN())); }

TEST_F(Host, PageableMemoryMayChangeAfterACopyWasEnqueuedPageLockedMayNot) {
  void* pinned = nullptr;
  ASSERT_EQ(cudaMallocHost(&pinned, kN * sizeof(float)), cudaSuccess);
  std::vector<float> pageable = ones;
  std::memcpy(pinned, ones.data(), kN * sizeof(float));
  fill(x, pageable);
  ASSERT_EQ(cudaMemcpyAsync(y, pinned, kN * sizeof(float), cudaMemcpyHostToDevice, stream),
            cudaSuccess);
  pageable.assign(kN, 7.0f);
  static_cast<float*>(pinned)[0] = 7;  // too early
  EXPECT_THAT(host(x, kN), Each(1.0f));
  EXPECT_EQ(host(y, kN)[0], 7.0f);
  EXPECT_EQ(cudaFreeHost(pinned), cudaSuccess);
  EXPECT_EQ(cudaFreeHost(pinned), cudaErrorInvalidValue);
  cudaGetLastError();
}

TEST_F(Host, DeviceMemoryIsOutOfReach) {
  if (kAsan) {
    EXPECT_DEATH({ y[0] = 1; }, "");
  } else {
    EXPECT_EXIT({ y[0] = 1; }, testing::KilledBySignal(SIGSEGV), "");
  }
}

TEST_F(Host, WritesToFreedMemory) {
  float* gone = floats(kN);
  release(gone);
  if (kAsan) {
    EXPECT_DEATH(
        {
          (void)run(Kernel::SCALE, gone, y, 1, kN, 64, stream);
          cudaStreamSynchronize(stream);
        },
        "AddressSanitizer");
    return;
  }
  // NaN + 0 is NaN again, of the same bits: this writes values.
  ASSERT_EQ(run(Kernel::WITH_BARRIER, gone, nullptr, 0, kN, kN, stream), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaErrorLaunchFailure);
  EXPECT_THAT(take_violations(), HasSubstr("freed device memory (1024 bytes)"));
}

TEST_F(Host, CopiesMustLieWithinOneAllocation) {
  std::vector<float> h(2 * kN);
  const auto copy = [&](void* to, const void* from, size_t n, cudaMemcpyKind kind) {
    return cudaMemcpyAsync(to, from, n * sizeof(float), kind, stream);
  };
  EXPECT_EQ(copy(y, h.data(), kN + 1, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(copy(h.data(), y, kN + 1, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
  EXPECT_EQ(copy(h.data(), y, kN, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(copy(h.data(), h.data() + kN, 1, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
  EXPECT_EQ(copy(x, y, kN, cudaMemcpyDeviceToDevice), cudaSuccess);
  EXPECT_EQ(cudaMemsetAsync(y + 1, 0, kN * sizeof(float), stream), cudaErrorInvalidValue);
  cudaGetLastError();
}

TEST_F(Host, AStreamBelongsToItsDevice) {
  ASSERT_EQ(cudaSetDevice(1), cudaSuccess);
  EXPECT_EQ(cudaMemsetAsync(y, 0, 4, stream), cudaErrorInvalidResourceHandle);
  ASSERT_EQ(cudaSetDevice(0), cudaSuccess);
  EXPECT_EQ(cudaSetDevice(99), cudaErrorInvalidDevice);
  cudaGetLastError();
}

TEST_F(Host, MemoryEnds) {
  settings().memory_bytes = 1 << 20;
  void* p = nullptr;
  EXPECT_EQ(cudaMalloc(&p, 1 << 20), cudaErrorMemoryAllocation);
  cudaGetLastError();
  ASSERT_EQ(cudaMalloc(&p, 1 << 19), cudaSuccess);
  EXPECT_EQ(cudaFree(p), cudaSuccess);
  EXPECT_EQ(cudaFree(p), cudaErrorInvalidValue);
  cudaGetLastError();
}

}  // namespace
}  // namespace cudasim
