// All-reduce by NCCL between MPI ranks, each a process with its own device.
//   mpirun -n N test_nccl
// Without a device for each rank nothing is tested; the first rank says "SKIPPED".
#include <gtest/gtest.h>

#include <cstdio>

#include "kernels/transfer.h"
#include "parallel/mpi.h"
#include "parallel/nccl.h"

namespace lorashard {
namespace {

Communicator* world = nullptr;

TEST(NcclRanks, SumInWorldAndParts) {
  Stream stream(Backend::CUDA, 1, host_rank().rank);
  const auto nccl = make_nccl_communicator(*world, stream);
  const auto part = nccl->split(world->rank() % 2);
  constexpr int64_t kN = 50000;
  const std::vector<float> ones(kN, 1.0f);
  Buffer memory(stream, kN * sizeof(float));
  const Matrix x = matrix(memory.data(), 1, kN, DType::F32);
  copy_to_device(stream, x.data, ones.data(), kN * int64_t{sizeof(float)});
  for (int round = 0; round < 5; ++round) {
    nccl->all_reduce_sum_wait(stream, nccl->all_reduce_sum_begin(stream, x, "world"));
  }
  float want = 1;
  for (int round = 0; round < 5; ++round) want *= float(nccl->size());
  EXPECT_EQ(host_copy(stream, memory.as<float>(), kN), std::vector<float>(kN, want));
  part->all_reduce_sum(stream, x, "part");
  EXPECT_EQ(host_copy(stream, memory.as<float>(), kN),
            std::vector<float>(kN, want * float(part->size())));
  nccl->barrier("end");
}

}  // namespace
}  // namespace lorashard

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  lorashard::MpiEnvironment environment(&argc, &argv);
  const auto world = lorashard::make_world_communicator();
  lorashard::world = world.get();
  const lorashard::HostRank mine = lorashard::host_rank();
  const int devices = lorashard::cuda_devices();
  lorashard::Stream host(1);
  int64_t lacking = mine.rank >= devices;
  world->all_reduce_sum(host, lorashard::matrix(&lacking, 1, 1, lorashard::DType::I64), "devices");
  if (lacking > 0) {
    if (world->rank() == 0)
      std::printf("SKIPPED: %d rank(s), but %d CUDA device(s) answer here\n", world->size(),
                  devices);
    return 0;
  }
  return RUN_ALL_TESTS();
}
