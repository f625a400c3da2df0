// Where signals run, and what a stop signal does.
//
// oneDNN's generated GEMM kernels (before the releases that carry its pull requests 4855 and 4859)
// use the stack pointer as a data pointer: while one runs, rsp may point into the heap, and a
// signal handler's frame is written over whatever lies there. So no handler may run on a thread
// that computes:
// - asynchronous signals are blocked in every thread but one of ours, which waits for them. It
//   sigwaits for the stop signals; any other signal has its usual effect there, a handler that a
//   library installed included, on a stack that no GEMM uses;
// - faults (SIGBUS, SIGSEGV) can only be handled by the thread that met them: every thread has an
//   alternate stack for that.
#pragma once

#include <functional>

namespace lorashard {

// Call first in main(), before any thread exists: threads inherit what is blocked. Programs that we
// start must get their signals back: unblock_all_signals() between fork and exec.
void own_signals();
void unblock_all_signals();

// Runs `handler` for this fault (SIGBUS, SIGSEGV, ...), on the alternate stack of its thread.
void handle_fault(int signal, void (*handler)(int));
// Handlers of faults that a library installed (MPI does) run on the alternate stacks from now on.
void move_fault_handlers_aside();

// The stop signals are SIGINT and SIGTERM; SIGUSR1, which mpirun and Slurm pass on to every rank,
// counts as SIGTERM. Until changed below they, and SIGHUP, have their usual effect: the process
// ends by them, after the clean-ups below; one that was ignored when the program started stays
// ignored.

// From now on a stop signal calls `action` with SIGINT or SIGTERM, on the waiting thread. `action`
// ends the process, or returns to go on.
void on_stop_signal(std::function<void(int)> action);
// From now on stop signals are remembered: stop_signal() gives the last one (SIGINT or SIGTERM), or
// 0. A second one that is not of the same moment calls `second`, which ends the process.
void remember_stop_signals(std::function<void(int)> second);
int stop_signal();
// The last SIGINT or SIGTERM was sent by the process that started this one: under mpirun, which
// ends the other ranks so when one has failed.
bool stop_came_from_parent();

// While it lives, `undo` runs before a stop signal's usual effect ends the process: on the waiting
// thread, while all other threads go on, so it may only do what does not need their locks, such as
// removing files.
class UndoIfStopped {
 public:
  explicit UndoIfStopped(std::function<void()> undo);
  ~UndoIfStopped();
  UndoIfStopped(const UndoIfStopped&) = delete;
  UndoIfStopped& operator=(const UndoIfStopped&) = delete;

 private:
  int id_;
};

}  // namespace lorashard
