#include "launch/job.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <new>
#include <thread>

#include "configs/error.h"
#include "configs/signals.h"
#include "parallel/launcher.h"
#include "parallel/mpi.h"

namespace lorashard {
namespace {

// MPI runs: its memory says which rank of a host speaks.
std::atomic<bool> mpi_is_up = false;

void report(const char* what) {
  std::fflush(stdout);
  std::fprintf(stderr, "error: %s\n", what);
  std::fflush(stderr);
}

// This rank alone met the error. Ranks of a tensor-parallel group often meet one error in the same
// moment (a broken line of data): the first of a host reports it, and ends the others while they
// wait; between hosts the lower rank is given time to.
[[noreturn]] void report_and_abort(Communicator& world, const char* what, int status) {
  constexpr auto kStagger = std::chrono::milliseconds(250);
  constexpr int kMostTurns = 12;  // 3 s: well inside the 10 s in which the job must end
  std::this_thread::sleep_for(kStagger * std::min(world.rank(), kMostTurns));
  if (first_of_host_to_ask()) {
    report(what);
  } else {
    std::this_thread::sleep_for(std::chrono::seconds(3));
  }
  world.abort(status);
  std::_Exit(status);
}

// Of the ranks of a host that meet the same thing, each on its own and at any moment, one speaks.
// May be called in a signal handler.
bool speaks_for_host() {
  static std::atomic<bool> asked = false;  // several threads of a process meet the same fault
  if (asked.exchange(true)) return false;
  return mpi_is_up ? first_of_host_to_ask() : !is_extra_rank();
}

// A page of a mapped file that is gone: the file was cut short, or its disk fails.
[[noreturn]] void lost_page(int) {
  static constexpr char kText[] =
      "error: mapped file: a part of the model or adapter can no longer be read; it was cut short, "
      "replaced in place, or its disk fails\n";
  if (speaks_for_host()) {
    [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, kText, sizeof kText - 1);
  }
  ::_exit(kExitFailure);
}

// On the thread that waits for signals, while all others go on.
[[noreturn]] void end_now(const std::string& line, int status) {
  // A rank that failed, or mpirun, has said what there is to say.
  const bool told = started_by_mpi_launcher() && stop_came_from_parent();
  if (!told && speaks_for_host()) {
    [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, line.data(), line.size());
  }
  ::_exit(status);
}

const char* name_of(int signal) { return signal == SIGINT ? "SIGINT" : "SIGTERM"; }

int run_body(Communicator& world, HostRank host, const std::function<int(const Ranks&)>& body) {
  const auto failed = [&](const char* what, int status, bool on_all_ranks) {
    if (world.size() > 1 && !on_all_ranks) report_and_abort(world, what, status);
    if (world.rank() == 0) report(what);
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
  handle_fault(SIGBUS, lost_page);
  std::signal(SIGXFSZ, SIG_IGN);  // a file over the limit on sizes is an error of its write
  const LauncherClaims claims = launcher_claims();
  is_extra_rank();  // remembered now: signal handlers ask it too
  // True where this process is no rank of the job that the launcher started; one task says so.
  const auto refuse = [&](int world_size, const std::string& mpi) {
    const auto mismatch = launcher_mismatch(claims, world_size, mpi);
    if (mismatch && !is_extra_rank()) report(("launcher: " + *mismatch).c_str());
    return mismatch.has_value();
  };
  if (!with_mpi || !started_by_mpi_launcher()) {
    if (with_mpi && refuse(1, "")) return kExitInput;
    const auto world = make_self_communicator();
    return run_body(*world, {}, body);
  }
  try {
    MpiEnvironment environment(argc, argv);
    move_fault_handlers_aside();
    mpi_is_up = true;
    if (refuse(mpi_world_size(), mpi_library())) return kExitInput;
    const auto world = make_world_communicator();
    return run_body(*world, host_rank(), body);
  } catch (const Error& e) {
    report(e.what());
    return e.exit_status;
  }
}

bool is_extra_rank() {
  static const bool extra = launcher_claims().rank.value_or(0) != 0;  // as it was before MPI began
  return extra;
}

void stop_at_once(const std::function<bool()>& has_checkpoint) {
  std::signal(SIGPIPE, SIG_IGN);
  on_stop_signal([has_checkpoint](int signal) {
    const std::string by = std::string("stopped by ") + name_of(signal);
    if (has_checkpoint()) {
      end_now(by + " before a further step was done; continue with --resume\n", 128 + signal);
    }
    end_now("error: start-up: " + by +
                " before the first step was done, so there is no checkpoint; start the run again "
                "with --resume\n",
            kExitFailure);
  });
}

void stop_after_a_checkpoint() {
  remember_stop_signals([](int signal) {
    end_now(std::string("error: stop: a second signal, ") + name_of(signal) +
                ", ended the run before its checkpoint was written; --resume continues from the "
                "one before\n",
            kExitFailure);
  });
}

}  // namespace lorashard
