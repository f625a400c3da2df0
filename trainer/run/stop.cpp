#include "trainer/run/stop.h"

#include <csignal>

namespace lorashard {

int stop_signal_of_group(const Mesh& mesh, const std::function<int()>& stop_signal) {
  const int mine = stop_signal();
  int64_t signals[2] = {mine == SIGINT, mine == SIGTERM};
  Stream host(1);
  mesh.tensor->all_reduce_sum(host, matrix(signals, 1, 2, DType::I64), "stop");
  return signals[1] > 0 ? SIGTERM : signals[0] > 0 ? SIGINT : 0;
}

}  // namespace lorashard
