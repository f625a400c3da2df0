// What the tests of the simulator share: plain calls of the CUDA runtime, checked.
#pragma once

#include <cuda_runtime_api.h>
#include <cudasim/sanitizers.h>
#include <cudasim/settings.h>
#include <cudasim/violation.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "tests/cudasim/tests/kernels.h"

namespace cudasim {

// A stream and y(n), zeroed, on device 0; expects every violation to be taken by the test.
class SimulatorTest : public testing::Test {
 protected:
  static constexpr int kN = 256;

  void SetUp() override {
    ASSERT_EQ(cudaSetDevice(0), cudaSuccess);
    before_ = settings();
    ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
    y = floats(kN);
    ASSERT_EQ(cudaMemsetAsync(y, 0, kN * sizeof(float), stream), cudaSuccess);
  }
  void TearDown() override {
    settings() = before_;
    cudaStreamSynchronize(stream);
    for (float* p : memory_) cudaFree(p);
    cudaStreamDestroy(stream);
    EXPECT_EQ(take_violations(), "");
  }

  float* floats(int n) {
    void* p = nullptr;
    EXPECT_EQ(cudaMalloc(&p, size_t(n) * sizeof(float)), cudaSuccess);
    memory_.push_back(static_cast<float*>(p));
    return memory_.back();
  }
  void release(float* p) {
    std::erase(memory_, p);
    EXPECT_EQ(cudaFree(p), cudaSuccess);
  }
  std::vector<float> host(const float* p, int n) {
    std::vector<float> h(static_cast<size_t>(n));
    EXPECT_EQ(
        cudaMemcpyAsync(h.data(), p, h.size() * sizeof(float), cudaMemcpyDeviceToHost, stream),
        cudaSuccess);
    EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    return h;
  }
  void fill(float* p, const std::vector<float>& h) {
    EXPECT_EQ(
        cudaMemcpyAsync(p, h.data(), h.size() * sizeof(float), cudaMemcpyHostToDevice, stream),
        cudaSuccess);
  }

  cudaStream_t stream = nullptr;
  float* y = nullptr;

 private:
  Settings before_;
  std::vector<float*> memory_;
};

}  // namespace cudasim
