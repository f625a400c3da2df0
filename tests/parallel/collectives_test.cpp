// Collectives over ranks that are threads: the tests of layouts rest on them.
#include "parallel/collectives.h"

#include <gtest/gtest.h>

#include <atomic>

#include "configs/error.h"
#include "kernels/float_types.h"
#include "parallel/agree.h"
#include "parallel/mesh.h"
#include "parallel/threads.h"

namespace lorashard {
namespace {

TEST(Collectives, AllReduceSumsOverRanksInEveryType) {
  run_thread_ranks(3, [](Communicator& c) {
    Stream stream(1);
    const int r = c.rank();
    float f[2] = {float(r), 10.0f * float(r)};
    c.all_reduce_sum(stream, matrix(f, 1, 2, DType::F32), "f");
    EXPECT_EQ(f[0], 3);
    EXPECT_EQ(f[1], 30);
    double d = 0.5 * r;
    c.all_reduce_sum(stream, matrix(&d, 1, 1, DType::F64), "d");
    EXPECT_EQ(d, 1.5);
    int64_t i = (int64_t{1} << 40) + r;
    c.all_reduce_sum(stream, matrix(&i, 1, 1, DType::I64), "i");
    EXPECT_EQ(i, 3 * (int64_t{1} << 40) + 3);
    uint16_t h = float_to_bf16(1.5f);
    c.all_reduce_sum(stream, matrix(&h, 1, 1, DType::BF16), "h");
    EXPECT_EQ(bf16_to_float(h), 4.5f);
  });
}

TEST(Collectives, GatherBroadcastAndSplit) {
  run_thread_ranks(6, [](Communicator& world) {
    const int32_t mine = 7 * world.rank();
    int32_t all[6];
    world.all_gather(&mine, all, sizeof mine, "g");
    for (int r = 0; r < 6; ++r) EXPECT_EQ(all[r], 7 * r);
    int32_t value = world.rank();
    world.broadcast(&value, sizeof value, 4, "b");
    EXPECT_EQ(value, 4);
    const Mesh mesh = make_mesh(world, 3);
    EXPECT_EQ(mesh.tp_size, 3);
    EXPECT_EQ(mesh.dp_size, 2);
    EXPECT_EQ(mesh.tensor->rank(), world.rank() % 3);
    int32_t group[3];
    mesh.tensor->all_gather(&mine, group, sizeof mine, "g");
    for (int r = 0; r < 3; ++r) EXPECT_EQ(group[r], 7 * (mesh.dp_rank * 3 + r));
  });
}

TEST(Collectives, ScatterAndGatherSlices) {
  run_thread_ranks(3, [](Communicator& c) {
    Stream stream(1);
    const int r = c.rank();
    float x[6];
    for (int i = 0; i < 6; ++i) x[i] = float(10 * i + r);
    const Matrix all = matrix(x, 1, 6, DType::F32);
    c.reduce_scatter_sum(stream, all, "x");
    for (int i = 2 * r; i < 2 * r + 2; ++i) EXPECT_EQ(x[i], 30.0f * float(i) + 3);
    EXPECT_EQ(c.slice(all).data, x + 2 * r);
    c.all_gather_slices(stream, all, "x");
    for (int i = 0; i < 6; ++i) EXPECT_EQ(x[i], 30.0f * float(i) + 3);
  });
}

TEST(Collectives, ATraceListsEachCall) {
  run_thread_ranks(2, [](Communicator& c) {
    std::vector<CollectiveCall> trace;
    c.set_trace(&trace);
    Stream stream(1);
    float x[4] = {};
    c.all_reduce_sum(stream, matrix(x, 2, 2, DType::F32), "x");
    c.barrier("end");
    ASSERT_EQ(trace.size(), 2u);
    EXPECT_EQ(trace[0].operation, "all_reduce");
    EXPECT_EQ(trace[0].label, "x");
    EXPECT_EQ(trace[0].bytes, 16);
    EXPECT_EQ(trace[1].operation, "barrier");
  });
}

TEST(Collectives, AFailingRankReleasesTheOthers) {
  std::atomic<int> released = 0;
  EXPECT_THROW(run_thread_ranks(3,
                                [&](Communicator& c) {
                                  if (c.rank() == 1) throw Error(kExitFailure, "rank 1", "failed");
                                  try {
                                    c.barrier("b");
                                  } catch (...) {
                                    ++released;
                                    throw;
                                  }
                                }),
               std::exception);
  EXPECT_EQ(released, 2);
}

TEST(Agree, EveryRankThrowsTheLowestFailingRanksError) {
  run_thread_ranks(4, [](Communicator& c) {
    try {
      run_agreed(c, [&] {
        if (c.rank() >= 2) fail_input("data.jsonl:7", "rank " + std::to_string(c.rank()));
      });
      ADD_FAILURE() << "no error on rank " << c.rank();
    } catch (const Error& e) {
      EXPECT_STREQ(e.what(), "data.jsonl:7: rank 2");
      EXPECT_EQ(e.exit_status, kExitInput);
      EXPECT_TRUE(e.on_all_ranks);
    }
    run_agreed(c, [] {});  // and the ranks are still in step
  });
}

}  // namespace
}  // namespace lorashard
