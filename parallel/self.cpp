// One rank alone: every collective is the identity, which Communicator itself takes care of.
#include <cstdlib>

#include "parallel/collectives.h"

namespace lorashard {
namespace {

class SelfCommunicator final : public Communicator {
 public:
  SelfCommunicator() : Communicator(0, 1) {}
  std::unique_ptr<Communicator> split(int) override { return std::make_unique<SelfCommunicator>(); }
  [[noreturn]] void abort(int exit_status) override { std::_Exit(exit_status); }

 private:
  void do_all_reduce_sum(Stream&, Matrix) override {}
  void do_all_gather(const void*, void*, int64_t) override {}
  void do_broadcast(void*, int64_t, int) override {}
  void do_barrier() override {}
};

}  // namespace

std::unique_ptr<Communicator> make_self_communicator() {
  return std::make_unique<SelfCommunicator>();
}

}  // namespace lorashard
