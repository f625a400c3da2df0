// Time of one all_reduce_sum through the shared window and by MPI's messages, in turns:
//   mpirun -n 2 build/tests/bench/bench_collectives [ROUNDS]
// Of each rank the best and the median call, in microseconds; rank 0's are printed.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "parallel/mpi.h"

using namespace lorashard;

namespace {

struct Times {
  double best, median;
};

Times summary(std::vector<double> times) {
  std::sort(times.begin(), times.end());
  return {times.front(), times[times.size() / 2]};
}

double time_call(Communicator& c, Stream& stream, Matrix x) {
  c.barrier("start");
  const auto start = std::chrono::steady_clock::now();
  c.all_reduce_sum(stream, x, "x");
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start)
      .count();
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 200;
  MpiEnvironment environment(&argc, &argv);
  const auto memory = make_world_communicator(AllReducePath::SharedMemory);
  const auto messages = make_world_communicator(AllReducePath::Messages);
  Stream stream(1);
  if (memory->rank() == 0) {
    std::printf("%d ranks, us        window best  median   messages best  median   ratio of best\n",
                memory->size());
  }
  const struct {
    const char* what;
    int64_t n;
    DType dtype;
  } payloads[] = {{"F32 64 B", 16, DType::F32},           {"F32 16 KB", 4096, DType::F32},
                  {"F32 256 KB", 65536, DType::F32},      {"F32 1024x576", 589824, DType::F32},
                  {"BF16 1024x576", 589824, DType::BF16}, {"F32 16 MB", 1 << 22, DType::F32}};
  for (const auto& p : payloads) {
    std::vector<char> data(size_t(p.n * size_of(p.dtype)));  // zeros stay finite
    const Matrix x = matrix(data.data(), 1, p.n, p.dtype);
    std::vector<double> window_times, message_times;
    for (int i = 0; i < (p.n > 1000000 ? rounds / 10 + 1 : rounds); ++i) {
      window_times.push_back(time_call(*memory, stream, x));
      message_times.push_back(time_call(*messages, stream, x));
    }
    const Times a = summary(window_times), b = summary(message_times);
    if (memory->rank() == 0) {
      std::printf("%-16s %13.1f %7.1f %15.1f %7.1f %15.2f\n", p.what, a.best, a.median, b.best,
                  b.median, b.best / a.best);
    }
  }
}
