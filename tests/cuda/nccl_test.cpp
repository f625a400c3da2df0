// All-reduce by NCCL with ranks as threads of one process, each with its own device; on the
// simulator also what goes wrong.
#include "parallel/nccl.h"

#include <gmock/gmock.h>
#if LORASHARD_CUDA_SIM
#include <cudasim/nccl_faults.h>
#include <cudasim/violation.h>
#endif

#include "configs/error.h"
#include "kernels/float_types.h"
#include "kernels/transfer.h"
#include "parallel/threads.h"
#include "tests/cuda/device.h"

namespace lorashard {
namespace {

using testing::AllOf;
using testing::HasSubstr;

// Runs body(communicator, stream) on `ranks` ranks.
void run_ranks(int ranks, const std::function<void(Communicator&, Stream&)>& body) {
  run_thread_ranks(ranks, [&](Communicator& host) {
    Stream stream(Backend::CUDA, 1, host.rank());
    const auto nccl = make_nccl_communicator(host, stream);
    body(*nccl, stream);
  });
#if LORASHARD_CUDA_SIM
  EXPECT_EQ(cudasim::live_communicators(), 0);
#endif
}

template <class T>
struct OnDevice {
  OnDevice(Stream& stream, const std::vector<T>& h, DType type)
      : memory(stream, h.size() * sizeof(T)),
        matrix(lorashard::matrix(memory.data(), 1, int64_t(h.size()), type)) {
    copy_to_device(stream, memory.data(), h.data(), int64_t(h.size() * sizeof(T)));
  }
  std::vector<T> host(Stream& stream) {
    return host_copy(stream, memory.template as<T>(), matrix.cols);
  }
  Buffer memory;
  Matrix matrix;
};

// More than one piece of the simulated NCCL's.
constexpr size_t kN = 40000;

TEST(Nccl, SumsEveryType) {
  NEEDS_CUDA_DEVICES(3);
  run_ranks(3, [](Communicator& world, Stream& stream) {
    std::vector<float> f(kN);
    std::vector<uint16_t> b(kN);
    std::vector<double> d(kN);
    std::vector<int64_t> i(kN);
    for (size_t k = 0; k < kN; ++k) {
      f[k] = float(k) + float(world.rank());
      b[k] = float_to_bf16(float(k % 16));
      d[k] = 1e-3 * double(k);
      i[k] = int64_t(k) << (world.rank() * 8);
    }
    OnDevice<float> df(stream, f, DType::F32);
    OnDevice<uint16_t> db(stream, b, DType::BF16);
    OnDevice<double> dd(stream, d, DType::F64);
    OnDevice<int64_t> di(stream, i, DType::I64);
    world.all_reduce_sum(stream, df.matrix, "f");
    world.all_reduce_sum(stream, db.matrix, "b");
    world.all_reduce_sum(stream, dd.matrix, "d");
    world.all_reduce_sum(stream, di.matrix, "i");
    f = df.host(stream), b = db.host(stream), d = dd.host(stream), i = di.host(stream);
    for (size_t k = 0; k < kN; ++k) {
      ASSERT_EQ(f[k], 3 * float(k) + 3);
      ASSERT_EQ(bf16_to_float(b[k]), 3 * float(k % 16));
      ASSERT_DOUBLE_EQ(d[k], 3e-3 * double(k));
      ASSERT_EQ(i[k], int64_t(k) * (1 + 256 + 65536));
    }
  });
}

// What is enqueued between the halves runs beside the all-reduce; what comes after wait() sees it.
TEST(Nccl, SumsInHalves) {
  NEEDS_CUDA_DEVICES(2);
  run_ranks(2, [](Communicator& world, Stream& stream) {
    OnDevice<float> x(stream, std::vector<float>(kN, 1), DType::F32);
    OnDevice<float> y(stream, std::vector<float>(kN, 2), DType::F32);
    std::vector<CollectiveCall> trace;
    world.set_trace(&trace);
    for (int round = 0; round < 40; ++round) {  // more than the ring of all-reduces under way
      const ReduceTicket first = world.all_reduce_sum_begin(stream, x.matrix, "first");
      const ReduceTicket second = world.all_reduce_sum_begin(stream, y.matrix, "second");
      world.all_reduce_sum_wait(stream, first);
      world.all_reduce_sum_wait(stream, second);
      const float factor = float(1 << (round + 1));
      if (round < 20) {
        ASSERT_EQ(x.host(stream)[kN - 1], factor);
        ASSERT_EQ(y.host(stream)[0], 2 * factor);
      }
    }
    world.set_trace(nullptr);
    ASSERT_EQ(trace.size(), 80u);
    EXPECT_EQ(trace[1].label, "second");
    EXPECT_EQ(trace[1].bytes, int64_t(kN * sizeof(float)));
  });
}

TEST(Nccl, ScattersAndGathersSlices) {
  NEEDS_CUDA_DEVICES(3);
  run_ranks(3, [](Communicator& world, Stream& stream) {
    const size_t slice = 30001, first = slice * size_t(world.rank());
    std::vector<float> x(3 * slice);
    for (size_t k = 0; k < x.size(); ++k) x[k] = float(k) + float(world.rank());
    OnDevice<float> d(stream, x, DType::F32);
    world.reduce_scatter_sum(stream, d.matrix, "x");
    x = d.host(stream);
    for (size_t k = first; k < first + slice; ++k) ASSERT_EQ(x[k], 3 * float(k) + 3);
    world.all_gather_slices(stream, d.matrix, "x");
    x = d.host(stream);
    for (size_t k = 0; k < x.size(); ++k) ASSERT_EQ(x[k], 3 * float(k) + 3);
  });
}

TEST(Nccl, PartsOfAWorldSumApart) {
  NEEDS_CUDA_DEVICES(4);
  run_ranks(4, [](Communicator& world, Stream& stream) {
    const auto pair = world.split(world.rank() / 2);
    const auto alone = world.split(world.rank());
    EXPECT_EQ(pair->size(), 2);
    OnDevice<float> x(stream, {float(1 << world.rank())}, DType::F32);
    alone->all_reduce_sum(stream, x.matrix, "alone");
    pair->all_reduce_sum(stream, x.matrix, "pair");
    EXPECT_EQ(x.host(stream)[0], world.rank() < 2 ? 3 : 12);
    world.all_reduce_sum(stream, x.matrix, "world");
    EXPECT_EQ(x.host(stream)[0], 30);
  });
}

TEST(Nccl, TheHostsWorkGoesThroughTheHost) {
  NEEDS_CUDA_DEVICES(2);
  run_ranks(2, [](Communicator& world, Stream&) {
    const int mine = 10 + world.rank();
    int all[2] = {};
    world.all_gather(&mine, all, sizeof mine, "numbers");
    EXPECT_EQ(all[0] + all[1], 21);
    int said = mine;
    world.broadcast(&said, sizeof said, 1, "said");
    EXPECT_EQ(said, 11);
    world.barrier("barrier");
    Stream cpu(1);
    double sum = mine;
    world.all_reduce_sum(cpu, matrix(&sum, 1, 1, DType::F64), "host sum");
    EXPECT_EQ(sum, 21);
  });
}

// One rank waits for its device while the other waits for it on the host: a device works by itself.
TEST(Nccl, AHostMayWaitElsewhereMeanwhile) {
  NEEDS_CUDA_DEVICES(2);
  run_ranks(2, [](Communicator& world, Stream& stream) {
    OnDevice<float> x(stream, {1}, DType::F32);
    world.all_reduce_sum(stream, x.matrix, "x");
    if (world.rank() == 0) {
      EXPECT_EQ(x.host(stream)[0], 2);
    }
    world.barrier("after");
    EXPECT_EQ(x.host(stream)[0], 2);
  });
}

std::string error_of_ranks(int ranks, const std::function<void(Communicator&, Stream&)>& body) {
  try {
    run_ranks(ranks, body);
  } catch (const Error& e) {
    EXPECT_EQ(e.exit_status, kExitFailure);
    return e.what();
  }
  return "no error";
}

TEST(Nccl, ARankThatNeverComesIsMissedInTime) {
  NEEDS_CUDA_DEVICES(2);
  set_nccl_patience(std::chrono::milliseconds(300), std::chrono::seconds(20));
  const std::string error = error_of_ranks(2, [](Communicator& world, Stream& stream) {
    OnDevice<float> x(stream, {1}, DType::F32);
    if (world.rank() == 0) {
      world.all_reduce_sum(stream, x.matrix, "lora_gradient");
      stream.synchronize();
    } else {
      std::this_thread::sleep_for(std::chrono::milliseconds(800));
    }
  });
  set_nccl_patience(std::chrono::minutes(30), std::chrono::minutes(5));
  EXPECT_THAT(
      error,
      AllOf(HasSubstr("NCCL rank 0 of 2: ncclAllReduce of lora_gradient did not end in time")));
}

// An error of another kind leaves nothing that hangs: memory is freed while an all-reduce that
// peers never join is enqueued.
TEST(Nccl, AnErrorElsewhereDoesNotHang) {
  NEEDS_CUDA_DEVICES(2);
  const std::string error = error_of_ranks(2, [](Communicator& world, Stream& stream) {
    OnDevice<float> x(stream, {1}, DType::F32);
    if (world.rank() == 1) {
      world.all_reduce_sum(stream, x.matrix, "x");
      fail_run("data.train:7", "a broken line");
    }
    world.barrier("never");
  });
  EXPECT_THAT(error, HasSubstr("a broken line"));
}

#if LORASHARD_CUDA_SIM
TEST(Nccl, AnAsynchronousErrorNamesRankCallAndTensor) {
  const std::string error = error_of_ranks(2, [](Communicator& world, Stream& stream) {
    OnDevice<float> x(stream, {1}, DType::F32);
    world.all_reduce_sum(stream, x.matrix, "layer.0.o_proj");
    if (world.rank() == 1) cudasim::fail_next_all_reduce(ncclSystemError);
    world.all_reduce_sum(stream, x.matrix, "layer.3.o_proj");
    stream.synchronize();
  });
  EXPECT_THAT(error, AllOf(HasSubstr("NCCL rank "),
                           HasSubstr(" of 2: ncclAllReduce of layer.3.o_proj failed: ")));
}

TEST(Nccl, AFailureToJoinIsAgreed) {
  const std::string error = error_of_ranks(1, [](Communicator&, Stream&) {});
  EXPECT_EQ(error, "no error");
  try {
    run_thread_ranks(2, [&](Communicator& host) {
      Stream stream(Backend::CUDA, 1, host.rank());
      cudasim::fail_next_init(ncclSystemError);
      make_nccl_communicator(host, stream);
    });
    FAIL();
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("NCCL rank 0 of 2: ncclCommInitRankConfig failed: "));
    EXPECT_TRUE(e.on_all_ranks);
  }
  EXPECT_EQ(cudasim::live_communicators(), 0);
}

// The simulator's own check: real ranks would hang or sum garbage.
TEST(Nccl, RanksThatDisagreeAreNoticed) {
  const std::string error = error_of_ranks(2, [](Communicator& world, Stream& stream) {
    OnDevice<float> x(stream, {1, 2, 3}, DType::F32);
    x.matrix.cols -= world.rank();
    world.all_reduce_sum(stream, x.matrix, "x");
    stream.synchronize();
  });
  EXPECT_THAT(error, HasSubstr("elements of type"));
  EXPECT_THAT(cudasim::take_violations(), HasSubstr("ncclAllReduce: rank"));
}
#endif

}  // namespace
}  // namespace lorashard
