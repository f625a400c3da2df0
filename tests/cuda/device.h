// What the tests of device kernels share: a CUDA stream next to the CPU's, matrices on the device,
// and the orders in which a simulated device runs threads and blocks. With LORASHARD_CUDA=SIM the
// device is simulated; with ON it is the first real one, and without one the tests are skipped.
#pragma once

#include <gtest/gtest.h>

#include <tuple>

#include "kernels/cuda/kernels.h"
#include "kernels/transfer.h"
#include "tests/kernels/reference.h"
#if __has_include(<cudasim/settings.h>)
#include <cudasim/settings.h>
#endif

// For tests that need `n` devices. Real machines may have none: then a test is skipped, which is no
// pass (ctest's label gpu).
#define NEEDS_CUDA_DEVICES(n)                                                          \
  if (lorashard::cuda::device_count() < n)                                             \
  GTEST_SKIP() << (n) << " CUDA device(s) needed, " << lorashard::cuda::device_count() \
               << " answer here"

namespace lorashard {

// Thread order, and whether blocks run in reverse order.
enum class ThreadOrder { FORWARD, REVERSE, RANDOM };
using Order = std::tuple<ThreadOrder, bool>;

class DeviceTest : public testing::TestWithParam<Order> {
 protected:
  void SetUp() override {
    NEEDS_CUDA_DEVICES(1);
#if __has_include(<cudasim/settings.h>)
    const auto [threads, reverse_blocks] = GetParam();
    before_ = cudasim::settings();
    cudasim::settings().threads = threads == ThreadOrder::FORWARD   ? cudasim::Order::FORWARD
                                  : threads == ThreadOrder::REVERSE ? cudasim::Order::REVERSE
                                                                    : cudasim::Order::RANDOM;
    cudasim::settings().reverse_blocks = reverse_blocks;
#endif
    device_ = std::make_unique<Stream>(Backend::CUDA, 1, 0);
  }
  void TearDown() override {
    if (!device_) return;
    device_->synchronize();
    device_.reset();
#if __has_include(<cudasim/settings.h>)
    cudasim::settings() = before_;
#endif
  }
  Stream& device() { return *device_; }

  Stream cpu{1};

 private:
  std::unique_ptr<Stream> device_;
#if __has_include(<cudasim/settings.h>)
  cudasim::Settings before_;
#endif
};

// Four of the six orders meet every kind of dependence; a real device has but one.
inline auto all_orders() {
#if __has_include(<cudasim/settings.h>)
  return testing::Values(Order{ThreadOrder::FORWARD, false}, Order{ThreadOrder::REVERSE, true},
                         Order{ThreadOrder::RANDOM, false}, Order{ThreadOrder::RANDOM, true});
#else
  return testing::Values(Order{ThreadOrder::FORWARD, false});
#endif
}

inline std::string order_name(const testing::TestParamInfo<Order>& info) {
  const auto [threads, reverse_blocks] = info.param;
  const char* names[] = {"Forward", "Reverse", "Random"};
  return std::string(names[int(threads)]) + (reverse_blocks ? "BlocksReversed" : "");
}

// A copy of a host matrix on the device, gaps between the rows included. It starts `shift` elements
// into its memory, which decides whether vector accesses are allowed.
class DeviceMatrix {
 public:
  DeviceMatrix(Stream& stream, const HostMatrix& host, int64_t shift = 0)
      : stream_(stream),
        host_(host),
        offset_(size_t(shift * size_of(host.dtype))),
        memory_(stream, offset_ + host.bytes.size()) {
    copy_to_device(stream, data(), host.bytes.data(), int64_t(host.bytes.size()));
  }
  void* data() const { return memory_.as<char>() + offset_; }
  Matrix view() const { return {data(), host_.rows, host_.cols, host_.ld, host_.dtype}; }
  operator Matrix() const { return view(); }
  operator ConstMatrix() const { return view(); }
  // What stands there now.
  HostMatrix host() {
    copy_to_host(stream_, host_.bytes.data(), data(), int64_t(host_.bytes.size()));
    return host_;
  }

 private:
  Stream& stream_;
  HostMatrix host_;
  size_t offset_;
  Buffer memory_;
};

// Values on the device.
template <class T>
class DeviceArray {
 public:
  DeviceArray(Stream& stream, const std::vector<T>& host)
      : stream_(stream),
        size_(host.size()),
        memory_(stream, std::max<size_t>(1, host.size()) * sizeof(T)) {
    copy_to_device(stream, data(), host.data(), int64_t(size_ * sizeof(T)));
  }
  T* data() const { return memory_.as<T>(); }
  std::vector<T> host() { return host_copy(stream_, data(), int64_t(size_)); }

 private:
  Stream& stream_;
  size_t size_;
  Buffer memory_;
};

struct Shape {
  int64_t rows, cols;
  int64_t pad = 0;    // ld - cols
  int64_t shift = 0;  // elements into the memory
};

// Ragged and tiny ones, odd widths, gaps that keep and that break the alignment of vectors.
inline const std::vector<Shape>& shapes() {
  static const std::vector<Shape> list = {
      {1, 1},       {1, 7},       {5, 1},        {5, 1, 3},  {33, 8},         {3, 64, 8},
      {3, 64, 3},   {7, 130, 6},  {2, 577, 1},   {4, 1024},  {3, 64, 0, 1},   {300, 40},
      {2, 2056, 8}, {1, 4099, 5}, {17, 9, 7, 8}, {6, 96, 4}, {2, 96, 32, 16},
  };
  return list;
}

inline std::string describe(const Shape& s) {
  return std::to_string(s.rows) + " x " + std::to_string(s.cols) + ", ld + " +
         std::to_string(s.pad) + ", from element " + std::to_string(s.shift);
}

inline HostMatrix random_matrix(const Shape& s, DType type, uint64_t seed, double spread = 1,
                                double mean = 0) {
  return HostMatrix(s.rows, s.cols, type, s.pad).randomize(seed, spread, mean);
}

// Expects what the device made to be the CPU's result, up to the tolerance, and its gaps untouched.
inline void expect_matches(const HostMatrix& device, const HostMatrix& cpu, double absolute = 0,
                           double relative = 0) {
  expect_near(
      device, [&](int64_t i, int64_t j) { return cpu(i, j); }, absolute, relative);
  EXPECT_TRUE(device.gaps_untouched());
}

// Two results that are equal in fp32 up to a few roundings may round to neighbours of the storage
// type: one unit in its last place apart.
inline double neighbour(DType t) { return 2 * rounding(t); }

}  // namespace lorashard
