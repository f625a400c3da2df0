#include "launch/job.h"

#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <new>
#include <thread>

#include "configs/error.h"
#include "parallel/mpi.h"

namespace lorashard {
namespace {

volatile std::sig_atomic_t last_signal = 0;
volatile std::sig_atomic_t last_signal_s = 0;  // when, on the monotonic clock

int seconds_now() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int(now.tv_sec);
}

// A batch system signals mpirun and its ranks, and mpirun passes it on: what comes within a second
// or two is the same wish again.
void remember_signal(int signal) {
  constexpr int kSameWish_s = 2;
  const int now = seconds_now();
  if (last_signal != 0) {
    if (now - last_signal_s < kSameWish_s) return;
    std::signal(signal, SIG_DFL);
    std::raise(signal);
  }
  last_signal_s = now;
  last_signal = signal == SIGUSR1 ? SIGTERM : signal;
}

void tell(const char* what) {
  std::fflush(stdout);
  std::fprintf(stderr, "error: %s\n", what);
  std::fflush(stderr);
}

// This rank alone met the error. Ranks of a tensor-parallel group often meet the same one in the
// same moment (a broken line of data): the first of a host tells it, and ends the others while they
// wait; between hosts the lower rank is given time to.
[[noreturn]] void tell_and_abort(Communicator& world, const char* what, int status) {
  constexpr auto kStagger = std::chrono::milliseconds(250);
  constexpr int kMostTurns = 12;  // 3 s: well inside the 10 s in which the job must end
  std::this_thread::sleep_for(kStagger * std::min(world.rank(), kMostTurns));
  if (first_of_host_to_ask()) {
    tell(what);
  } else {
    std::this_thread::sleep_for(std::chrono::seconds(3));
  }
  world.abort(status);
  std::_Exit(status);
}

// A page of a mapped file that is gone: the file was cut short, or its disk fails.
[[noreturn]] void lost_page(int) {
  static constexpr char kText[] =
      "error: mapped file: a part of the model or adapter can no longer be read; it was cut short, "
      "replaced in place, or its disk fails\n";
  if (first_of_host_to_ask()) {
    [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, kText, sizeof kText - 1);
  }
  ::_exit(kExitFailure);
}

int run_body(Communicator& world, HostRank host, const std::function<int(const Ranks&)>& body) {
  const auto failed = [&](const char* what, int status, bool on_all_ranks) {
    if (world.size() > 1 && !on_all_ranks) tell_and_abort(world, what, status);
    if (world.rank() == 0) tell(what);
    return status;
  };
  try {
    return body(Ranks{world, host.size, host.rank});
  } catch (const Error& e) {
    return failed(e.what(), e.exit_status, e.on_all_ranks);
  } catch (const std::filesystem::filesystem_error& e) {
    return failed((e.path1().string() + ": " + e.code().message()).c_str(), kExitFailure, false);
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
  std::signal(SIGBUS, lost_page);
  if (!with_mpi || !started_by_mpi_launcher()) {
    const auto world = make_self_communicator();
    return run_body(*world, {}, body);
  }
  try {
    MpiEnvironment environment(argc, argv);
    const auto world = make_world_communicator();
    return run_body(*world, host_rank(), body);
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
