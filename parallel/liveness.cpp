#include "parallel/liveness.h"

#include <mpi.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <deque>
#include <numeric>
#include <optional>
#include <thread>
#include <utility>

#include "configs/error.h"
#include "parallel/datagrams.h"
#include "parallel/hosts.h"
#include "parallel/launcher_end.h"
#include "parallel/peer_watch.h"

namespace lorashard {
namespace {

// What this rank waits in, written by the thread that calls MPI and read by ours. `progress` is odd
// while it waits; what was read is whole if it has not changed meanwhile.
struct Present {
  std::atomic<uint64_t> progress{0}, group{0}, call{0};
  std::atomic<const std::vector<int>*> members{nullptr};
  std::atomic<const char*> operation{""};
  std::array<std::atomic<uint64_t>, 6> label{};
} present;
std::atomic<int64_t> timeout_s{300}, step_of_waits{0};
std::atomic<bool> running{false};

void store_label(const char* text) {
  uint64_t words[6] = {};
  std::strncpy(reinterpret_cast<char*>(words), text, sizeof words - 1);
  for (size_t i = 0; i < 6; ++i) present.label[i].store(words[i], std::memory_order_relaxed);
}

struct Snapshot {
  Heartbeat beat;
  const std::vector<int>* members = nullptr;
  std::string operation, label;
};

std::optional<Snapshot> look() {
  Snapshot s;
  s.beat.progress = present.progress.load(std::memory_order_acquire);
  if (s.beat.progress % 2 == 0) return s;
  s.beat.group = present.group.load(std::memory_order_relaxed);
  s.beat.call = present.call.load(std::memory_order_relaxed);
  s.members = present.members.load(std::memory_order_relaxed);
  s.operation = present.operation.load(std::memory_order_relaxed);
  uint64_t words[6];
  for (size_t i = 0; i < 6; ++i) words[i] = present.label[i].load(std::memory_order_relaxed);
  s.label = reinterpret_cast<const char*>(words);
  std::atomic_thread_fence(std::memory_order_acquire);
  if (present.progress.load(std::memory_order_relaxed) != s.beat.progress) return std::nullopt;
  return s;
}

class Watchdog {
 public:
  Watchdog() : ranks_(int(hosts().names.size())), rank_(world_rank()), watch_(rank_, ranks_) {
    // The thread takes no signal: those are for the run.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    thread_ = std::thread([this] { loop(); });
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }
  ~Watchdog() {
    stop_ = true;
    datagrams_.wake();
    thread_.join();
  }

 private:
  using Clock = std::chrono::steady_clock;

  static int world_rank() {
    int rank = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    return rank;
  }
  // Often enough that some of them may be lost; seldom enough that many ranks do not flood anyone.
  double interval() const {
    const double few = std::clamp(double(timeout_s.load()) / 10, 0.1, 1.0);
    return few * std::max(1, ranks_ / 128);
  }

  void loop() {
    auto last = Clock::now(), sent = last - std::chrono::hours(1);
    while (!stop_) {
      const auto now = Clock::now();
      const auto seconds = [](Clock::duration d) {
        return std::chrono::duration<double>(d).count();
      };
      // Time in which this process did not run (stopped, or its host asleep) says nothing.
      now_ += std::min(seconds(now - last), 2 * interval());
      last = now;
      Heartbeat beat;
      for (int peer; (peer = datagrams_.receive(&beat, sizeof beat)) >= 0;) {
        watch_.heard(peer, beat, now_);
      }
      const std::optional<Snapshot> s = look();
      if (s) {
        watch_.observe_self(s->beat, now_);
        beat = s->beat;
        static const std::vector<int> none;
        if (watch_.must_end(s->members ? *s->members : none, double(timeout_s), now_)) give_up(*s);
      }
      if (s && seconds(now - sent) >= interval()) {
        datagrams_.send_to_all(&beat, sizeof beat);
        sent = now;
      }
      note_unheard();
      datagrams_.wait(int(1000 * interval() / 2) + 1);
    }
    Heartbeat beat;
    beat.leaving = true;
    datagrams_.send_to_all(&beat, sizeof beat);
  }

  // Once, some seconds after the start.
  void note_unheard() {
    constexpr double kGrace_s = 5;
    if (noted_ || now_ < kGrace_s) return;
    noted_ = true;
    const std::vector<int> unheard = watch_.never_heard();
    if (rank_ != 0 || unheard.empty() || timeout_s == 0) return;
    std::fprintf(
        stderr,
        "note: no small messages (UDP) come from %s; parallel.timeout_s counts all waiting "
        "for them, also while they compute or write\n",
        hosts().places(unheard).c_str());
  }

  std::string describe(const Snapshot& s) const {
    const std::string place = "error: " + hosts().place(rank_) + ": ";
    const int64_t step = step_of_waits;
    const std::string of_step = step > 0 ? " of step " + std::to_string(step) : "";
    if (!s.members) {
      return place + "ends, since a rank waits for one that is lost; it was at work" +
             (step > 0 ? " in step " + std::to_string(step) : "") + "\n";
    }
    const PeerWatch::Awaited awaited = watch_.awaited(*s.members, double(timeout_s), now_);
    std::string text = place + "waited " + std::to_string(int64_t(watch_.waited(now_))) + " s in " +
                       s.operation + " \"" + s.label + "\"" + of_step + " for ";
    if (!awaited.silent.empty()) {
      text +=
          hosts().places(awaited.silent) + ", " +
          (awaited.never_heard ? "never heard of"
                               : "silent for " + std::to_string(int64_t(awaited.silent_s)) + " s");
    }
    if (!awaited.elsewhere.empty()) {
      text += (awaited.silent.empty() ? "" : " and ") + hosts().places(awaited.elsewhere) +
              ", which did not come to it";
    }
    if (awaited.silent.empty() && awaited.elsewhere.empty()) text += "the others, which have come";
    return text +
           "; see that the host, its network and its processes are well (parallel.timeout_s is " +
           std::to_string(timeout_s) + ")\n";
  }

  bool a_host_is_silent() const {
    std::vector<int> all(static_cast<size_t>(ranks_));
    std::iota(all.begin(), all.end(), 0);
    const std::vector<int> silent = watch_.awaited(all, double(timeout_s) / 2, now_).silent;
    const auto& first = hosts().first_rank;
    return std::any_of(silent.begin(), silent.end(), [&](int r) {
      const auto of_host = [&](int q) { return first[size_t(q)] == first[size_t(r)]; };
      return std::count_if(all.begin(), all.end(), of_host) ==
             std::count_if(silent.begin(), silent.end(), of_host);
    });
  }

  // Reports, lets the others report, and ends the process: mpirun ends the job with our status.
  [[noreturn]] void give_up(const Snapshot& s) {
    const std::string text = describe(s);
    [[maybe_unused]] const ssize_t n = ::write(STDERR_FILENO, text.data(), text.size());
    Heartbeat beat = s.beat;
    beat.lost = true;
    for (int i = 0; i < 20; ++i) {
      datagrams_.send_to_all(&beat, sizeof beat);
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
    end_launcher(a_host_is_silent());
    ::_exit(kExitFailure);
  }

  const int ranks_, rank_;
  Datagrams datagrams_;
  PeerWatch watch_;
  double now_ = 0;
  bool noted_ = false;
  std::atomic<bool> stop_ = false;
  std::thread thread_;
};

std::unique_ptr<Watchdog> watchdog;

}  // namespace

WaitGroup& make_wait_group(uint64_t id, std::vector<int> members) {
  // Never freed: the watchdog may look at a group whose communicator is gone.
  static auto* const groups = new std::deque<WaitGroup>();
  return groups->emplace_back(WaitGroup{id, std::move(members), 0});
}

void start_liveness() {
  if (hosts().names.size() < 2) return;
  watchdog = std::make_unique<Watchdog>();
  running = true;
}

void stop_liveness() {
  running = false;
  watchdog.reset();
}

void set_peer_timeout(int64_t seconds) { timeout_s = seconds; }
void set_step_for_waits(int64_t step) { step_of_waits = step; }

PeerWait::PeerWait(WaitGroup& group, const char* operation, const char* label) {
  if (!running.load(std::memory_order_relaxed)) return;
  constexpr auto relaxed = std::memory_order_relaxed;
  present.group.store(group.id, relaxed);
  present.call.store(++group.calls, relaxed);
  present.members.store(&group.members, relaxed);
  present.operation.store(operation, relaxed);
  store_label(label);
  present.progress.fetch_add(1, std::memory_order_release);
}

PeerWait::~PeerWait() {
  if (!running.load(std::memory_order_relaxed)) return;
  present.progress.fetch_add(1, std::memory_order_release);
}

}  // namespace lorashard
