// Programs without the CUDA backend.
#include "configs/error.h"
#include "parallel/nccl.h"

namespace lorashard {

std::unique_ptr<Communicator> make_nccl_communicator(Communicator&, Stream&) {
  fail_run("compute.backend", "this program was built without the CUDA backend");
}

void set_nccl_patience(std::chrono::milliseconds, std::chrono::milliseconds) {}

}  // namespace lorashard
