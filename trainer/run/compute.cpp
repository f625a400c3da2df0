#include "trainer/run/compute.h"

#include <fmt/format.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "configs/error.h"
#include "parallel/agree.h"
#include "parallel/nccl.h"

namespace lorashard {

int choose_threads(int64_t requested, int host_ranks) {
  if (requested > 0) return int(requested);
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  const int mine = CPU_COUNT(&set);
  const auto all = int(sysconf(_SC_NPROCESSORS_ONLN));
  return mine < all ? mine : std::max(1, mine / std::max(1, host_ranks));
}

DeviceChoice choose_device(RunConfig::Compute::Backend::Value wanted, const std::string& where,
                           const Ranks& ranks) {
  using Setting = RunConfig::Compute::Backend;
  DeviceChoice choice;
  if (wanted == Setting::CPU) return choice;
  const int devices = cuda_devices();
  choice.device = ranks.host_rank;
  int64_t lacking = ranks.host_rank >= devices;
  Stream host(1);
  ranks.world.all_reduce_sum(host, matrix(&lacking, 1, 1, DType::I64), "devices");
  if (lacking == 0) {
    choice.backend = Backend::CUDA;
    return choice;
  }
  choice.no_cuda = !built_with_cuda() ? "this program was built without the CUDA backend"
                   : devices == 0     ? "no CUDA device answers here"
                                  : fmt::format("{} of {} ranks have no CUDA device of their own",
                                                lacking, ranks.world.size());
  if (wanted == Setting::CUDA) {
    run_agreed(ranks.world, [&] {
      fail_input(where, choice.no_cuda + "; use AUTO or CPU" +
                            (devices > 0 ? ", or start one rank per device of each host" : ""));
    });
  }
  return choice;
}

std::string backend_line(const DeviceChoice& choice, int ranks) {
  if (choice.backend == Backend::CUDA) {
    return fmt::format("backend CUDA device {} ({}), one for each of {} rank(s)", choice.device,
                       cuda_device_name(choice.device), ranks);
  }
  return "backend CPU, " + (choice.no_cuda.empty() ? "as asked for" : "since " + choice.no_cuda);
}

Compute::Compute(const Ranks& ranks, const DeviceChoice& choice, int threads)
    : stream_(choice.backend, threads, choice.device), host_(ranks.world) {
  if (choice.backend == Backend::CUDA) nccl_ = make_nccl_communicator(host_, stream_);
}

double peak_rss_mib() {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("VmHWM:")) return std::stod(line.substr(6)) / 1024;
  }
  return 0;
}

size_t activation_budget(const Stream& stream, int host_ranks) {
  // Where nothing is left, the least that can be kept; 0 would mean no limit.
  const auto at_least_one = [](size_t bytes) { return std::max<size_t>(bytes, 1); };
  if (stream.backend() == Backend::CUDA) return at_least_one(stream.available_bytes() / 10 * 9);
  std::ifstream file("/proc/meminfo");
  for (std::string key; file >> key;) {
    size_t kib = 0;
    if (key == "MemAvailable:" && file >> kib) {
      return at_least_one(kib * 1024 / 10 * 6 / size_t(std::max(1, host_ranks)));
    }
  }
  return 0;
}

}  // namespace lorashard
