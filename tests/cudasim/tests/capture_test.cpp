// Stream capture and graphs, and the counts of what a program asks of the runtime.
#include <cudasim/counts.h>

#include "tests/cudasim/tests/fixture.h"

namespace cudasim {
namespace {

using testing::Each;

class Capturing : public SimulatorTest {
 protected:
  void SetUp() override {
    SimulatorTest::SetUp();
    ASSERT_EQ(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking), cudaSuccess);
    ASSERT_EQ(cudaEventCreateWithFlags(&fork, cudaEventDisableTiming), cudaSuccess);
    ASSERT_EQ(cudaEventCreateWithFlags(&join, cudaEventDisableTiming), cudaSuccess);
    x = floats(kN), z = floats(kN);
    fill(x, std::vector<float>(kN, 1.0f));
    fill(z, std::vector<float>(kN, 0.0f));
    ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  }
  void TearDown() override {
    if (graph) cudaGraphDestroy(graph);
    if (executable) cudaGraphExecDestroy(executable);
    cudaStreamDestroy(other);
    cudaEventDestroy(fork);
    cudaEventDestroy(join);
    SimulatorTest::TearDown();
  }
  void begin(cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal) {
    ASSERT_EQ(cudaStreamBeginCapture(stream, mode), cudaSuccess);
  }
  cudaError_t end() { return cudaStreamEndCapture(stream, &graph); }
  void launch() {
    if (!executable) {
      ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
    }
    ASSERT_EQ(cudaGraphLaunch(executable, stream), cudaSuccess);
  }
  cudaStreamCaptureStatus status() {
    cudaStreamCaptureStatus status;
    EXPECT_EQ(cudaStreamIsCapturing(stream, &status), cudaSuccess);
    return status;
  }
  // to += factor * from (kernels.h).
  cudaError_t scale(float* to, float* from, float factor, cudaStream_t on) {
    return run(Kernel::SCALE, to, from, factor, kN, 64, on);
  }
  // The call is refused with `error`, and with it the capture.
  void expect_refused(cudaError_t error, const std::function<cudaError_t()>& call) {
    begin();
    ASSERT_EQ(scale(y, x, 2, stream), cudaSuccess);
    EXPECT_EQ(call(), error);
    EXPECT_EQ(status(), cudaStreamCaptureStatusInvalidated);
    EXPECT_EQ(scale(y, x, 2, stream), cudaErrorStreamCaptureInvalidated);
    EXPECT_EQ(end(), cudaErrorStreamCaptureInvalidated);
    EXPECT_EQ(graph, nullptr);
    EXPECT_EQ(status(), cudaStreamCaptureStatusNone);
    cudaGetLastError();
    EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);  // works again
  }

  cudaStream_t other = nullptr;
  cudaEvent_t fork = nullptr, join = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  float *x = nullptr, *z = nullptr;
};

TEST_F(Capturing, RecordsAndRunsAtEachLaunch) {
  begin();
  EXPECT_EQ(status(), cudaStreamCaptureStatusActive);
  ASSERT_EQ(scale(y, x, 3, stream), cudaSuccess);
  ASSERT_EQ(scale(x, y, 2, stream), cudaSuccess);
  ASSERT_EQ(end(), cudaSuccess);
  size_t nodes = 0;
  EXPECT_EQ(cudaGraphGetNodes(graph, nullptr, &nodes), cudaSuccess);
  EXPECT_EQ(nodes, 2u);
  EXPECT_THAT(host(y, kN), Each(0.0f));  // nothing ran
  launch();
  EXPECT_THAT(host(x, kN), Each(7.0f));
  launch();
  launch();
  float y_ = 0, x_ = 1;
  for (int i = 0; i < 3; ++i) y_ += 3 * x_, x_ += 2 * y_;
  EXPECT_THAT(host(x, kN), Each(x_));
}

// Two streams: what the events order runs in order, whatever the seed; what they do not may not.
TEST_F(Capturing, EventsOrderTheStreamsThatForkAndJoin) {
  begin();
  ASSERT_EQ(scale(y, x, 2, stream), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(fork, stream), cudaSuccess);
  ASSERT_EQ(cudaStreamWaitEvent(other, fork, 0), cudaSuccess);
  ASSERT_EQ(scale(z, y, 5, other), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(join, other), cudaSuccess);
  ASSERT_EQ(scale(x, y, 7, stream), cudaSuccess);
  ASSERT_EQ(cudaStreamWaitEvent(stream, join, 0), cudaSuccess);
  ASSERT_EQ(scale(y, z, 1, stream), cudaSuccess);
  ASSERT_EQ(end(), cudaSuccess);
  float x_ = 1, y_ = 0, z_ = 0;
  for (int i = 0; i < 3; ++i) {
    launch();
    y_ += 2 * x_, z_ += 5 * y_, x_ += 7 * y_, y_ += z_;
    EXPECT_THAT(host(y, kN), Each(y_));
    EXPECT_THAT(host(x, kN), Each(x_));
  }
  // Both streams work as before.
  ASSERT_EQ(scale(z, x, 0, other), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(other), cudaSuccess);
}

TEST_F(Capturing, WorkThatNothingOrdersRunsInEitherOrder) {
  bool early = false, late = false;
  for (int round = 0; round < 40; ++round) {
    begin();
    ASSERT_EQ(cudaEventRecord(fork, stream), cudaSuccess);
    ASSERT_EQ(cudaStreamWaitEvent(other, fork, 0), cudaSuccess);
    ASSERT_EQ(cudaMemsetAsync(y, 0, kN * sizeof(float), other), cudaSuccess);
    ASSERT_EQ(cudaEventRecord(join, other), cudaSuccess);
    ASSERT_EQ(scale(y, x, 2, stream), cudaSuccess);  // should have waited
    ASSERT_EQ(cudaStreamWaitEvent(stream, join, 0), cudaSuccess);
    ASSERT_EQ(end(), cudaSuccess);
    launch();
    (host(y, kN)[0] == 0 ? early : late) = true;
    cudaGraphDestroy(graph);
    cudaGraphExecDestroy(std::exchange(executable, nullptr));
  }
  graph = nullptr;
  EXPECT_TRUE(early && late);
}

TEST_F(Capturing, AForkThatDoesNotJoinIsAnError) {
  begin();
  ASSERT_EQ(cudaEventRecord(fork, stream), cudaSuccess);
  ASSERT_EQ(cudaStreamWaitEvent(other, fork, 0), cudaSuccess);
  ASSERT_EQ(scale(y, x, 2, other), cudaSuccess);
  EXPECT_EQ(end(), cudaErrorStreamCaptureUnjoined);
}

TEST_F(Capturing, WhatTheHostMustNotDoMeanwhile) {
  using Call = std::function<cudaError_t()>;
  void* p = nullptr;
  std::vector<float> pageable(kN);
  const std::pair<cudaError_t, Call> calls[] = {
      {cudaErrorStreamCaptureUnsupported, [&] { return cudaStreamSynchronize(stream); }},
      {cudaErrorStreamCaptureUnsupported, [&] { return cudaStreamQuery(stream); }},
      {cudaErrorStreamCaptureUnsupported, [] { return cudaDeviceSynchronize(); }},
      {cudaErrorStreamCaptureUnsupported, [&] { return cudaMalloc(&p, 16); }},
      {cudaErrorStreamCaptureUnsupported, [&] { return cudaMallocHost(&p, 16); }},
      {cudaErrorStreamCaptureUnsupported, [&] { return cudaFree(z); }},
      {cudaErrorStreamCaptureUnsupported, [&] { return cudaEventSynchronize(fork); }},
      {cudaErrorStreamCaptureUnsupported,
       [&] { return cudaMemcpyAsync(y, pageable.data(), 16, cudaMemcpyHostToDevice, stream); }},
      {cudaErrorStreamCaptureUnsupported,
       [&] { return cudaMemcpyAsync(pageable.data(), y, 16, cudaMemcpyDeviceToHost, stream); }},
      {cudaErrorStreamCaptureImplicit, [&] { return cudaMemsetAsync(y, 0, 16, nullptr); }},
      {cudaErrorCapturedEvent,
       [&] {
         EXPECT_EQ(cudaEventRecord(join, stream), cudaSuccess);
         return cudaEventQuery(join);
       }},
      {cudaErrorStreamCaptureIsolation,
       [&] {
         EXPECT_EQ(cudaEventRecord(fork, other), cudaSuccess);
         return cudaStreamWaitEvent(stream, fork, 0);
       }},
      {cudaErrorStreamCaptureUnsupported,
       [&] { return cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal); }},
  };
  for (const auto& [error, call] : calls) expect_refused(error, call);
  EXPECT_EQ(end(), cudaErrorIllegalState);  // no capture is under way
}

TEST_F(Capturing, OtherStreamsEndsAndModes) {
  begin(cudaStreamCaptureModeRelaxed);
  void* p = nullptr;
  EXPECT_EQ(cudaMalloc(&p, 16), cudaSuccess);
  EXPECT_EQ(cudaFree(p), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(other), cudaSuccess);
  EXPECT_EQ(end(), cudaSuccess);
  cudaGraphDestroy(graph);

  begin();
  ASSERT_EQ(cudaEventRecord(fork, stream), cudaSuccess);
  ASSERT_EQ(cudaStreamWaitEvent(other, fork, 0), cudaSuccess);
  EXPECT_EQ(cudaStreamEndCapture(other, &graph), cudaErrorStreamCaptureUnmatched);
  EXPECT_EQ(end(), cudaErrorStreamCaptureInvalidated);

  begin();
  ASSERT_EQ(cudaStreamBeginCapture(other, cudaStreamCaptureModeGlobal), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(fork, other), cudaSuccess);
  EXPECT_EQ(cudaStreamWaitEvent(stream, fork, 0), cudaErrorStreamCaptureMerge);
  EXPECT_EQ(cudaStreamEndCapture(other, &graph), cudaErrorStreamCaptureInvalidated);
  EXPECT_EQ(end(), cudaErrorStreamCaptureInvalidated);
}

TEST_F(Capturing, CountsWhatWaitsAndAllocates) {
  std::vector<float> pageable(kN);
  void *pinned = nullptr, *memory = nullptr;
  const int64_t allocations = counts().allocations, waits = counts().waits,
                releases = counts().releases, copies = counts().pageable_copies;
  ASSERT_EQ(cudaMallocHost(&pinned, kN * sizeof(float)), cudaSuccess);
  ASSERT_EQ(cudaMalloc(&memory, 16), cudaSuccess);
  EXPECT_EQ(counts().allocations, allocations + 2);
  ASSERT_EQ(cudaMemcpyAsync(pinned, y, 16, cudaMemcpyDeviceToHost, stream), cudaSuccess);
  EXPECT_EQ(counts().pageable_copies, copies);
  ASSERT_EQ(cudaMemcpyAsync(pageable.data(), y, 16, cudaMemcpyDeviceToHost, stream), cudaSuccess);
  EXPECT_EQ(counts().pageable_copies, copies + 1);
  EXPECT_EQ(counts().waits, waits);
  ASSERT_EQ(cudaEventRecord(fork, stream), cudaSuccess);
  ASSERT_EQ(cudaEventSynchronize(fork), cudaSuccess);
  EXPECT_EQ(counts().waits, waits + 1);
  ASSERT_EQ(cudaEventSynchronize(fork), cudaSuccess);  // passed already
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(counts().waits, waits + 1);
  ASSERT_EQ(cudaMemsetAsync(y, 0, 16, stream), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(counts().waits, waits + 2);
  EXPECT_EQ(cudaFree(memory), cudaSuccess);
  EXPECT_EQ(cudaFreeHost(pinned), cudaSuccess);
  EXPECT_EQ(counts().releases, releases + 2);
}

}  // namespace
}  // namespace cudasim
