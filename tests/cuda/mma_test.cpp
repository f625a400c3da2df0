// The fragment arithmetic of kernels/cuda/mma.h against plain loops.
#include "kernels/cuda/device.h"
#include "kernels/transfer.h"
#include "tests/cuda/device.h"
#include "tests/cuda/mma_kernels.h"
#include "tests/kernels/reference.h"

namespace lorashard {
namespace {

using bf16 = __nv_bfloat16;

Buffer on_device(Stream& stream, const HostMatrix& host) {
  Buffer buffer(stream, host.bytes.size());
  copy_to_device(stream, buffer.data(), host.bytes.data(), int64_t(host.bytes.size()));
  return buffer;
}

TEST(Mma, IsTheProductOfItsFragments) {
  NEEDS_CUDA_DEVICES(1);
  Stream stream(Backend::CUDA, 1);
  for (bool transposed : {false, true}) {
    HostMatrix a(16, 16, DType::BF16), b(transposed ? 8 : 16, transposed ? 16 : 8, DType::BF16);
    HostMatrix c(16, 8, DType::F32), d(16, 8, DType::F32);
    a.randomize(1), b.randomize(2), c.randomize(3), d.fill(NAN);
    const Buffer a_ = on_device(stream, a), b_ = on_device(stream, b), c_ = on_device(stream, c);
    const Buffer d_ = on_device(stream, d);
    cuda::test_mma(cuda::stream_of(stream), d_.as<float>(), a_.as<bf16>(), b_.as<bf16>(),
                   c_.as<float>(), transposed);
    copy_to_host(stream, d.bytes.data(), d_.data(), 16 * 8 * 4);
    // Seventeen terms near one, summed in fp32.
    expect_near(
        d,
        [&](int64_t i, int64_t j) {
          double sum = c(i, j);
          for (int64_t k = 0; k < 16; ++k) sum += a(i, k) * (transposed ? b(j, k) : b(k, j));
          return sum;
        },
        1e-5, 1e-6);
  }
}

TEST(AsyncCopy, BringsItsBytesWhenWaitedFor) {
  NEEDS_CUDA_DEVICES(1);
  Stream stream(Backend::CUDA, 1);
  HostMatrix from(64, 8, DType::BF16), to(64, 8, DType::BF16);
  from.randomize(1);
  const Buffer from_ = on_device(stream, from), to_ = on_device(stream, to);
  const auto run = [&](bool wait_for_all) {
    cuda::test_copy(cuda::stream_of(stream), to_.as<bf16>(), from_.as<bf16>(), wait_for_all);
    copy_to_host(stream, to.bytes.data(), to_.data(), 64 * 8 * 2);
  };
  run(true);
  for (int64_t i = 0; i < 64; ++i)
    for (int64_t j = 0; j < 8; ++j) {
      const int64_t row = i < 32 ? 31 - i : 95 - i;
      const bool real = row < 32 || row % 2 == 0;
      EXPECT_EQ(to(i, j), real ? from(row, j) : 0) << i;
    }
#if LORASHARD_CUDA_SIM
  // Whoever does not wait finds NaN in simulation, where copies come as late as they may.
  run(false);
  for (int64_t i = 0; i < 64; ++i) EXPECT_EQ(std::isnan(to(i, 0)), i >= 32) << i;
#endif
}

}  // namespace
}  // namespace lorashard
