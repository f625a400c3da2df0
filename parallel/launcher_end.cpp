#include "parallel/launcher_end.h"

#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <string>
#include <vector>

namespace lorashard {
namespace {

struct Process {
  pid_t pid = 0, parent = 0;
  std::string name;  // its first 15 letters
};

// From /proc/PID/stat, "PID (NAME) STATE PARENT …"; pid 0 where there is none.
Process read_process(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  std::getline(file, text);
  const size_t open = text.find('('), close = text.rfind(')');
  if (open == std::string::npos || close == std::string::npos || close + 4 > text.size()) return {};
  return {pid, pid_t(std::atoi(text.c_str() + close + 4)), text.substr(open + 1, close - open - 1)};
}

bool is_one_of(const std::string& name, std::initializer_list<const char*> names) {
  return std::any_of(names.begin(), names.end(), [&](const char* n) { return name == n; });
}

bool is_mpirun(const Process& p) {  // of Open MPI
  return is_one_of(
      p.name, {"mpirun", "mpiexec", "orterun", "prterun", "mpirun.openmpi", "mpiexec.openmpi"});
}

// The launcher that this process descends from, perhaps by way of a script.
Process find_launcher() {
  constexpr int kMostScripts = 4;
  Process p = read_process(::getppid());
  for (int i = 0; i < kMostScripts && p.pid > 1; ++i, p = read_process(p.parent)) {
    if (is_mpirun(p) || is_one_of(p.name, {"orted", "prted", "mpiexec.hydra", "hydra_pmi_proxy"})) {
      return p;
    }
  }
  return {};
}

std::vector<Process> children_of(pid_t parent) {
  std::vector<Process> found;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", error)) {
    const std::string name = entry.path().filename().string();
    pid_t pid = 0;
    std::from_chars(name.data(), name.data() + name.size(), pid);
    if (pid <= 0) continue;
    if (const Process p = read_process(pid); p.parent == parent) found.push_back(p);
  }
  return found;
}

int open_process(pid_t pid) { return int(::syscall(SYS_pidfd_open, pid, 0)); }
void send(int process, int signal) {
  ::syscall(SYS_pidfd_send_signal, process, signal, nullptr, 0);
}

// Leaves a process behind that ends `process`, an open process, if it does not end by itself.
void end_later(int process) {
  constexpr int kPatience_ms = 3500, kForced_ms = 700;
  if (::fork() != 0) return;
  // Only what is allowed in a child of several threads. Nothing of the job's is held open.
  ::setsid();
  ::dup2(process, 0);
  ::syscall(SYS_close_range, 1, ~0u, 0);
  pollfd gone{0, POLLIN, 0};
  if (::poll(&gone, 1, kPatience_ms) == 0) {
    // To Open MPI's mpirun the second one means: at once.
    send(0, SIGTERM);
    if (::poll(&gone, 1, kForced_ms) == 0) send(0, SIGTERM);
    if (::poll(&gone, 1, kForced_ms) == 0) send(0, SIGKILL);
  }
  ::_exit(0);
}

}  // namespace

void end_launcher(bool host_is_gone) {
  const Process launcher = find_launcher();
  const int process = launcher.pid > 0 ? open_process(launcher.pid) : -1;
  if (process < 0) return;
  end_later(process);
  if (!host_is_gone || !is_mpirun(launcher)) {
    return;
  }
  const std::string own = read_process(::getpid()).name;
  bool ended = false;
  for (const Process& child : children_of(launcher.pid)) {
    if (child.name == own) continue;
    // Its wait status is then 3, which becomes mpirun's status, unless it catches the signal.
    ended |= ::kill(child.pid, SIGQUIT) == 0;
  }
  // mpirun now ends this process, and is itself gone soon.
  if (ended) ::sleep(2);
}

}  // namespace lorashard
