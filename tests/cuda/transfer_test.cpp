// Streams, device memory and the ways between host and device.
#include "kernels/transfer.h"

#include <gmock/gmock.h>

#include <numeric>

#include "configs/error.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/pinned_ring.h"
#include "tests/cuda/device.h"
#include "tests/kernels/reference.h"

namespace lorashard {
namespace {

using testing::HasSubstr;

std::vector<int32_t> numbers(size_t n, int32_t first = 0) {
  std::vector<int32_t> v(n);
  std::iota(v.begin(), v.end(), first);
  return v;
}

std::string error_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& e) {
    EXPECT_EQ(e.exit_status, kExitFailure);
    return e.what();
  }
  return "no error";
}

TEST(CudaStream, BuffersAreZeroAndScratchGrows) {
  NEEDS_CUDA_DEVICES(1);
  Stream stream(Backend::CUDA, 1);
  EXPECT_EQ(stream.backend(), Backend::CUDA);
  Buffer buffer(stream, 1000 * sizeof(int32_t));
  EXPECT_EQ(host_copy(stream, buffer.as<int32_t>(), 1000), std::vector<int32_t>(1000, 0));
  Buffer moved = std::move(buffer);
  EXPECT_EQ(buffer.data(), nullptr);
  EXPECT_EQ(host_copy(stream, moved.as<int32_t>(), 1000), std::vector<int32_t>(1000, 0));
  void* small = stream.scratch(ScratchSlot::GemmA, 100);
  EXPECT_EQ(stream.scratch(ScratchSlot::GemmA, 50), small);
  const std::vector<int32_t> h = numbers(30000);
  auto* large =
      static_cast<int32_t*>(stream.scratch(ScratchSlot::GemmA, h.size() * sizeof(int32_t)));
  copy_to_device(stream, large, h.data(), int64_t(h.size() * sizeof(int32_t)));
  EXPECT_EQ(host_copy(stream, large, int64_t(h.size())), h);
}

// More than all slots of the ring, with the host's memory gone at once.
TEST(CudaTransfer, HostMemoryMayGoWhenACopyReturns) {
  NEEDS_CUDA_DEVICES(1);
  Stream stream(Backend::CUDA, 1);
  const size_t n = 5 * cuda::PinnedRing::kSlotBytes / sizeof(int32_t) + 17;
  Buffer device(stream, n * sizeof(int32_t));
  {
    std::vector<int32_t> h = numbers(n, 3);
    copy_to_device(stream, device.data(), h.data(), int64_t(n * sizeof(int32_t)));
    h.assign(n, -1);
  }
  EXPECT_EQ(host_copy(stream, device.as<int32_t>(), int64_t(n)), numbers(n, 3));
  copy_to_device(stream, device.data(), nullptr, 0);
  copy_to_host(stream, nullptr, device.data(), 0);
}

TEST(CudaTransfer, MatricesOfAnyStride) {
  NEEDS_CUDA_DEVICES(1);
  Stream stream(Backend::CUDA, 1);
  for (const int64_t host_pad : {0, 5})
    for (const int64_t device_pad : {0, 3})
      // Many rows, and rows of more than one slot of the ring.
      for (const auto& [rows, cols] : {std::pair{700, 3001}, {2, 2100000}, {4, 0}, {0, 4}}) {
        HostMatrix h(rows, cols, DType::BF16, host_pad);
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t j = 0; j < cols; j += 61) h.set(i, j, double((i + j) % 251));
        HostMatrix back(rows, cols, DType::BF16, device_pad);
        Buffer memory(stream, back.bytes.size());
        copy_to_device(stream, memory.data(), back.bytes.data(), int64_t(back.bytes.size()));
        Matrix device = back;
        device.data = memory.data();
        copy_matrix_to_device(stream, device, h);
        copy_to_host(stream, back.bytes.data(), memory.data(), int64_t(back.bytes.size()));
        EXPECT_TRUE(back.gaps_untouched());
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t j = 0; j < cols; ++j) ASSERT_EQ(back(i, j), h(i, j));
      }
}

// Each put is read by work enqueued behind it, and none of it runs before the end: the page-locked
// slots must not be filled anew too early.
TEST(CudaTransfer, StagedValuesReachTheWorkEnqueuedBehindThem) {
  NEEDS_CUDA_DEVICES(1);
  Stream stream(Backend::CUDA, 1);
  constexpr int kPuts = 3 * StagedBytes::kInFlight + 1, kN = 50;
  Staged<int32_t> staged(stream, kN);
  Buffer seen(stream, kPuts * kN * sizeof(int32_t));
  for (int i = 0; i < kPuts; ++i) {
    std::vector<int32_t> h = numbers(kN, 100 * i);
    const int32_t* device = staged.put(h);
    h.assign(kN, -1);
    LORASHARD_CUDA_CHECK(cudaMemcpyAsync(seen.as<int32_t>() + i * kN, device, kN * sizeof(int32_t),
                                         cudaMemcpyDeviceToDevice, cuda::stream_of(stream)));
  }
  for (int i = 0; i < kPuts; ++i)
    EXPECT_EQ(host_copy(stream, seen.as<int32_t>() + i * kN, kN), numbers(kN, 100 * i));
  Staged<int32_t> moved = std::move(staged);
  moved.put(std::span<const int32_t>{});
}

TEST(CudaErrors, NameTheDeviceAndTheCall) {
  NEEDS_CUDA_DEVICES(1);
  const int devices = cuda::device_count();
  EXPECT_THAT(error_of([&] { Stream(Backend::CUDA, 1, devices); }),
              HasSubstr("CUDA device " + std::to_string(devices) + " was asked for"));
  const int last = devices - 1;
  Stream stream(Backend::CUDA, 1, last);
  const std::string where = "CUDA device " + std::to_string(last) + ": ";
  EXPECT_THAT(error_of([&] { Buffer(stream, size_t{1} << 50); }),
              testing::AllOf(HasSubstr(where + "cannot allocate 1125899906842624 bytes"),
                             HasSubstr("smaller micro_batch_size")));
  const Buffer buffer(stream, 16);
  EXPECT_THAT(error_of([&] { copy_to_device(stream, nullptr, "1234", 4); }),
              HasSubstr(where + "cudaMemcpyAsync failed: invalid argument"));
#if LORASHARD_CUDA_SIM
  EXPECT_THAT(error_of([&] { copy_to_device(stream, buffer.data(), "12345678901234567", 17); }),
              HasSubstr(where + "cudaMemcpyAsync failed: invalid argument"));
  cudasim::settings().devices = 0;
  EXPECT_EQ(cuda::device_count(), 0);
  EXPECT_THAT(error_of([] { Stream(Backend::CUDA, 1); }), HasSubstr("compute.backend: no CUDA"));
  cudasim::settings().devices = devices;
#endif
}

}  // namespace
}  // namespace lorashard
