// The CUDA attention kernels against the CPU's.
#include "kernels/attention.h"

#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/device.h"
#include "kernels/transfer.h"
#include "tests/cuda/device.h"
#include "tests/kernels/attention_problem.h"

namespace lorashard {
namespace {

using Case = AttentionCase;

// A copy of a host matrix in device memory, gaps included.
struct OnDevice {
  OnDevice(Stream& stream, HostMatrix& host)
      : stream(stream), host(host), buffer(stream, host.bytes.size()) {
    copy_to_device(stream, buffer.data(), host.bytes.data(), int64_t(host.bytes.size()));
  }
  void fetch() {
    copy_to_host(stream, host.bytes.data(), buffer.data(), int64_t(host.bytes.size()));
  }
  operator Matrix() const { return {buffer.data(), host.rows, host.cols, host.ld, host.dtype}; }
  operator ConstMatrix() const { return Matrix(*this); }

  Stream& stream;
  HostMatrix& host;
  Buffer buffer;
};

struct Problem : AttentionProblem {
  using AttentionProblem::AttentionProblem;

  // Equal values, stored in fp32.
  Problem in_f32(const Case& c) const {
    Problem wide(c, DType::F32, 0);
    const auto copy = [](HostMatrix& to, const HostMatrix& from) {
      for (int64_t i = 0; i < from.rows; ++i)
        for (int64_t j = 0; j < from.cols; ++j) to.set(i, j, from(i, j));
    };
    copy(wide.q, q), copy(wide.k, k), copy(wide.v, v), copy(wide.g, g);
    return wide;
  }

  void compute_on_cuda() {
    Stream stream(Backend::CUDA, 1);
    const auto on_device = [&](const std::vector<int32_t>& host) {
      Buffer buffer(stream, host.size() * sizeof(int32_t));
      copy_to_device(stream, buffer.data(), host.data(), int64_t(buffer.bytes()));
      return buffer;
    };
    const Buffer q_device = on_device(q_offsets), kv_device = on_device(kv_offsets);
    const Sequences sequences{q_offsets, kv_offsets, q_device.as<int32_t>(),
                              kv_device.as<int32_t>()};
    OnDevice q_(stream, q), k_(stream, k), v_(stream, v), g_(stream, g), o_(stream, o),
        lse_(stream, lse), dq_(stream, dq), dk_(stream, dk), dv_(stream, dv);
    attention_forward(stream, o_, lse_, q_, k_, v_, sequences, shape);
    attention_backward(stream, dq_, dk_, dv_, g_, q_, k_, v_, o_, lse_, sequences, shape);
    for (OnDevice* m : {&o_, &lse_, &dq_, &dk_, &dv_}) m->fetch();
  }
};

// Largest difference, over the largest value that there is or over one: gradients that cancel to
// nothing still have the rounding of their terms, which are of order one.
double distance(const HostMatrix& y, const HostMatrix& want) {
  double error = 0, size = 1;
  for (int64_t i = 0; i < y.rows; ++i)
    for (int64_t j = 0; j < y.cols; ++j) {
      size = std::max(size, std::abs(want(i, j)));
      const double e = std::abs(y(i, j) - want(i, j));
      if (std::isnan(e)) return e;
      error = std::max(error, e);
    }
  return error / size;
}

const char* const kNames[] = {"o", "lse", "dq", "dk", "dv"};

class CudaAttention : public testing::TestWithParam<std::tuple<Case, DType>> {
 protected:
  void SetUp() override { NEEDS_CUDA_DEVICES(1); }
};

// BF16: the weights and ds are rounded to bf16 before they are multiplied (2^-9 of each term, of
// either sign), results are rounded once (2^-9 of the result), and delta comes from an o so
// rounded. F32: sums of up to 300 terms in another order than the CPU's.
TEST_P(CudaAttention, AgreesWithCpu) {
  const auto& [c, type] = GetParam();
  for (int64_t pad : {0, 3}) {
    Problem cuda(c, type, pad);
    Problem cpu = cuda.in_f32(c);
    cuda.compute_on_cuda();
    cpu.compute_on_cpu(1);
    for (size_t i = 0; i < 5; ++i) {
      const bool rounded = type == DType::BF16 && i != 1;
      const double error = distance(*cuda.outputs()[i], *cpu.outputs()[i]);
      EXPECT_LE(error, rounded ? 0.012 : 4e-6) << kNames[i] << " pad " << pad;
      EXPECT_TRUE(cuda.outputs()[i]->gaps_untouched()) << kNames[i];
    }
  }
}

const Case kCases[] = {
    {1, 1, 2, 1, 0, 0, {1}, {1}},
    {4, 2, 64, 2, 0, 0, {130, 3, 64}, {130, 3, 64}},
    {9, 3, 64, 3, 0, 0, {50}, {50}},
    {3, 2, 32, 3, 1, 0, {70, 20}, {70, 20}},  // heads 1, 2 of group 0 and head 0 of group 1
    {2, 1, 80, 4, 1, 0, {33}, {33}},          // the middle of one group
    {2, 2, 72, 1, 0, 0, {65}, {65}},
    {2, 1, 6, 2, 0, 0, {17, 1, 40}, {17, 1, 40}},  // no multiple of a vector
    {1, 1, 192, 1, 0, 0, {70}, {70}},
    {2, 1, 256, 2, 0, 0, {40}, {40}},
    {2, 1, 128, 2, 0, 48, {150}, {150}},        // window
    {2, 2, 32, 1, 0, 1, {20}, {20}},            // each query sees only itself
    {4, 2, 64, 2, 0, 0, {1, 1}, {200, 1}},      // decoding with a cache
    {4, 2, 64, 2, 0, 30, {7, 66}, {150, 129}},  // continued prefill with a window
    {2, 1, 16, 2, 0, 0, {0, 4}, {3, 4}},        // a sequence without queries
    // Equally long, of lengths that cuDNN serves where it is built in.
    {4, 2, 64, 2, 0, 0, {128, 128}, {128, 128}},
    {2, 1, 128, 2, 0, 48, {128}, {128}},
};

INSTANTIATE_TEST_SUITE_P(Shapes, CudaAttention,
                         testing::Combine(testing::ValuesIn(kCases),
                                          testing::Values(DType::F32, DType::BF16)));

#if LORASHARD_CUDA_SIM
// Puts the simulator's settings back.
struct KeepSettings {
  cudasim::Settings before = cudasim::settings();
  ~KeepSettings() { cudasim::settings() = before; }
};

TEST(CudaAttentionOrder, ThreadsAndBlocksInAnyOrderGiveTheSameBits) {
  const KeepSettings keep;
  for (DType type : {DType::BF16, DType::F32}) {
    const Case c{4, 2, 64, 2, 0, 40, {90, 5}, {100, 5}};
    Problem forward(c, type, 0);
    forward.compute_on_cuda();
    for (cudasim::Order order : {cudasim::Order::REVERSE, cudasim::Order::RANDOM}) {
      cudasim::settings().threads = order;
      cudasim::settings().reverse_blocks = true;
      Problem other(c, type, 0);
      other.compute_on_cuda();
      for (size_t i = 0; i < 5; ++i)
        EXPECT_EQ(*forward.outputs()[i], *other.outputs()[i]) << kNames[i];
    }
  }
}
#endif

TEST(CudaAttentionForward, NeedsNoLse) {
  NEEDS_CUDA_DEVICES(1);
  const Case c{2, 1, 16, 2, 0, 0, {9}, {9}};
  Problem with(c, DType::BF16, 0), without(c, DType::BF16, 0);
  with.compute_on_cuda();
  Stream stream(Backend::CUDA, 1);
  Buffer offsets_(stream, 2 * sizeof(int32_t));
  copy_to_device(stream, offsets_.data(), without.q_offsets.data(), 2 * sizeof(int32_t));
  OnDevice q(stream, without.q), k(stream, without.k), v(stream, without.v), o(stream, without.o);
  attention_forward(
      stream, o, {}, q, k, v,
      {without.q_offsets, without.kv_offsets, offsets_.as<int32_t>(), offsets_.as<int32_t>()},
      without.shape);
  o.fetch();
  EXPECT_EQ(with.o, without.o);
}

// Scores of thousands: neither overflow nor a lost maximum.
TEST(CudaAttentionForward, IsStableForLargeScores) {
  NEEDS_CUDA_DEVICES(1);
  const Case c{1, 1, 64, 1, 0, 0, {100}, {100}};
  for (DType type : {DType::BF16, DType::F32}) {
    Problem cuda(c, type, 0);
    cuda.q.randomize(5, 60), cuda.k.randomize(6, 60);
    Problem cpu = cuda.in_f32(c);
    cuda.compute_on_cuda();
    cpu.compute_on_cpu(1);
    // Scores reach 1e4 with an fp32 step near 1e-3, which is then the relative error of p.
    EXPECT_LE(distance(cuda.o, cpu.o), 1e-2);
  }
}

TEST(CudaAttention, OrdersLseForCudnnAndBack) {
  NEEDS_CUDA_DEVICES(1);
  Stream stream(Backend::CUDA, 1);
  const cuda::LseOrder order{2, 3, 5};
  HostMatrix lse(10, 3, DType::F32, 1), back(lse);
  lse.randomize(1);
  OnDevice lse_(stream, lse), back_(stream, back);
  Buffer by_head(stream, 30 * sizeof(float));
  const cudaStream_t s = cuda::stream_of(stream);
  cuda::lse_to_heads(s, by_head.as<float>(), {lse_.buffer.as<float>(), lse.ld}, order);
  cuda::lse_from_heads(s, {back_.buffer.as<float>(), back.ld}, by_head.as<float>(), order);
  const std::vector<float> values = host_copy(stream, by_head.as<float>(), 30);
  back_.fetch();
  for (int64_t t = 0; t < 10; ++t)
    for (int64_t h = 0; h < 3; ++h)
      EXPECT_EQ(values[size_t((t / 5 * 3 + h) * 5 + t % 5)], float(lse(t, h)));
  EXPECT_EQ(lse, back);
}

TEST(CudaAttention, SaysWhichKernelRuns) {
  NEEDS_CUDA_DEVICES(1);
  Stream stream(Backend::CUDA, 1);
  const AttentionShape shape{.heads = 4, .kv_heads = 2, .head_dim = 64, .group = 2};
  const std::string line = attention_choice(stream, DType::BF16, shape, 2, 128);
#if LORASHARD_CUDA_SIM
  EXPECT_EQ(line.find("attention: own kernel (tensor cores)"), 0u) << line;
#else
  EXPECT_EQ(line.find("attention: "), 0u) << line;  // cuDNN's or ours, by what is installed
#endif
}

}  // namespace
}  // namespace lorashard
