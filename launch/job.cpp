#include "launch/job.h"

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <thread>

#include "configs/error.h"
#include "parallel/mpi.h"

namespace lorashard {
namespace {

volatile std::sig_atomic_t last_signal = 0;

void remember_signal(int signal) {
  if (last_signal != 0) {
    std::signal(signal, SIG_DFL);
    std::raise(signal);
  }
  last_signal = signal == SIGUSR1 ? SIGTERM : signal;
}

void tell(const char* what) {
  std::fflush(stdout);
  std::fprintf(stderr, "error: %s\n", what);
  std::fflush(stderr);
}

// This rank alone met the error. Ranks of a tensor-parallel group often meet the same one in the
// same moment (a broken line of data): the lower rank tells it, and ends the others while they
// wait.
[[noreturn]] void tell_and_abort(Communicator& world, const char* what, int status) {
  constexpr auto kStagger = std::chrono::milliseconds(250);
  constexpr int kMostTurns = 12;  // 3 s: well inside the 10 s in which the job must end
  std::this_thread::sleep_for(kStagger * std::min(world.rank(), kMostTurns));
  tell(what);
  world.abort(status);
  std::_Exit(status);
}

int run_body(Communicator& world, int host_ranks, const std::function<int(const Ranks&)>& body) {
  const auto failed = [&](const char* what, int status, bool on_all_ranks) {
    if (world.size() > 1 && !on_all_ranks) tell_and_abort(world, what, status);
    if (world.rank() == 0) tell(what);
    return status;
  };
  try {
    return body(Ranks{world, host_ranks});
  } catch (const Error& e) {
    return failed(e.what(), e.exit_status, e.on_all_ranks);
  } catch (const std::bad_alloc&) {
    return failed(
        "memory: allocation failed; use a smaller micro_batch_size or seq_len, or more "
        "tensor-parallel ranks",
        kExitFailure, false);
  } catch (const std::exception& e) {
    return failed((std::string("internal: ") + e.what()).c_str(), kExitFailure, false);
  }
}

}  // namespace

int run_job(int* argc, char*** argv, bool with_mpi, const std::function<int(const Ranks&)>& body) {
  if (!with_mpi || !started_by_mpi_launcher()) {
    const auto world = make_self_communicator();
    return run_body(*world, 1, body);
  }
  try {
    MpiEnvironment environment(argc, argv);
    const auto world = make_world_communicator();
    return run_body(*world, host_rank().size, body);
  } catch (const Error& e) {
    tell(e.what());
    return e.exit_status;
  }
}

bool is_extra_rank() {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"}) {
    if (const char* rank = std::getenv(name)) return std::atoi(rank) != 0;
  }
  return false;
}

void catch_stop_signals() {
  struct sigaction action {};
  action.sa_handler = remember_signal;
  action.sa_flags = SA_RESTART;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGUSR1, &action, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
}

int stop_signal() { return last_signal; }

}  // namespace lorashard
