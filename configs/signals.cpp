#include "configs/signals.h"

#include <pthread.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <map>
#include <mutex>

#include "configs/thread_stacks.h"

namespace lorashard {
namespace {

constexpr int kStopSignals[] = {SIGINT, SIGTERM, SIGUSR1, SIGHUP};

struct State {
  std::mutex mutex;
  std::function<void(int)> action, second;
  bool remember = false;
  timespec remembered_at{};
  std::map<int, std::function<void()>> undos;
  int next_undo = 0;
};
// Never destroyed: a signal may come while the program ends.
State& state() {
  static State& made = *new State;
  return made;
}
std::atomic<int> last_signal = 0;
std::atomic<bool> from_parent = false;

// All that can come at any moment. The others belong to what the thread itself just did: a fault, a
// write to a pipe without a reader or beyond the file size limit, a background job at its terminal.
sigset_t asynchronous_signals() {
  sigset_t set;
  sigfillset(&set);
  for (const int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS, SIGPIPE,
                           SIGXFSZ, SIGTTIN, SIGTTOU}) {
    sigdelset(&set, signal);
  }
  return set;
}

sigset_t stop_signals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : kStopSignals) sigaddset(&set, signal);
  return set;
}

// The signal has the effect that it would have if nobody waited for it.
void let_through(int signal) {
  struct sigaction usual {};
  sigaction(signal, nullptr, &usual);
  if (usual.sa_handler == SIG_IGN) return;
  if (usual.sa_handler == SIG_DFL) {
    for (const auto& [id, undo] : state().undos) undo();
  }
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, signal);
  pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
  ::raise(signal);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

// A batch system signals mpirun and its ranks, and mpirun passes it on: what comes within a second
// or two is the same wish again.
bool is_the_same_wish(const timespec& before) {
  constexpr double kSameWish_s = 2;
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return double(now.tv_sec - before.tv_sec) + 1e-9 * double(now.tv_nsec - before.tv_nsec) <
         kSameWish_s;
}

void take(int signal) {
  State& s = state();
  const std::unique_lock lock(s.mutex);
  const int stop = signal == SIGUSR1 ? SIGTERM : signal;
  if (signal == SIGHUP || (!s.remember && !s.action)) {
    let_through(signal);
  } else if (!s.remember) {
    s.action(stop);
  } else if (last_signal == 0) {
    clock_gettime(CLOCK_MONOTONIC, &s.remembered_at);
    last_signal = stop;
  } else if (!is_the_same_wish(s.remembered_at)) {
    s.second(stop);
  }
}

void* wait_for_signals(void*) {
  pthread_setname_np(pthread_self(), "signals");
  const sigset_t stops = stop_signals();
  pthread_sigmask(SIG_SETMASK, &stops, nullptr);
  while (true) {
    siginfo_t info{};
    const int signal = sigwaitinfo(&stops, &info);  // sigwait that also names the sender
    if (signal < 0) continue;                       // another signal had its usual effect here
    from_parent = signal != SIGUSR1 && info.si_code == SI_USER && info.si_pid == ::getppid();
    take(signal);
  }
}

}  // namespace

void own_signals() {
  give_this_thread_a_fault_stack();
  const sigset_t blocked = asynchronous_signals();
  pthread_sigmask(SIG_SETMASK, &blocked, nullptr);
  pthread_t thread;
  if (pthread_create(&thread, nullptr, wait_for_signals, nullptr) == 0) pthread_detach(thread);
}

void unblock_all_signals() {
  sigset_t none;
  sigemptyset(&none);
  pthread_sigmask(SIG_SETMASK, &none, nullptr);
}

void handle_fault(int signal, void (*handler)(int)) {
  struct sigaction action {};
  action.sa_handler = handler;
  action.sa_flags = SA_ONSTACK;
  sigaction(signal, &action, nullptr);
}

void move_fault_handlers_aside() {
  for (const int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT}) {
    struct sigaction action {};
    sigaction(signal, nullptr, &action);
    if (action.sa_handler == SIG_DFL || action.sa_handler == SIG_IGN) continue;
    action.sa_flags |= SA_ONSTACK;
    sigaction(signal, &action, nullptr);
  }
}

void on_stop_signal(std::function<void(int)> action) {
  const std::unique_lock lock(state().mutex);
  state().action = std::move(action);
}

void remember_stop_signals(std::function<void(int)> second) {
  const std::unique_lock lock(state().mutex);
  state().second = std::move(second);
  state().remember = true;
}

int stop_signal() { return last_signal; }

bool stop_came_from_parent() { return from_parent; }

UndoIfStopped::UndoIfStopped(std::function<void()> undo) {
  const std::unique_lock lock(state().mutex);
  id_ = state().next_undo++;
  state().undos[id_] = std::move(undo);
}

UndoIfStopped::~UndoIfStopped() {
  const std::unique_lock lock(state().mutex);
  state().undos.erase(id_);
}

}  // namespace lorashard
