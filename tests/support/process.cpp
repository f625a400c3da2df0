#include "tests/support/process.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <thread>

#include "configs/signals.h"

extern char** environ;

namespace lorashard::test {
namespace {

constexpr auto kPoll = std::chrono::milliseconds(1);

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// A file in memory holds more than a pipe, so nobody has to read while the command runs.
int memory_file(const char* name, const std::string& content = {}) {
  const int file = ::memfd_create(name, MFD_CLOEXEC);
  if (file < 0) throw std::runtime_error("memfd_create: " + std::string(std::strerror(errno)));
  for (size_t done = 0; done < content.size();) {
    const ssize_t n = ::pwrite(file, content.data() + done, content.size() - done, off_t(done));
    if (n <= 0) throw std::runtime_error("pwrite: " + std::string(std::strerror(errno)));
    done += size_t(n);
  }
  return file;
}

std::string content_of(int file) {
  std::string text;
  char block[1 << 14];
  while (true) {
    const ssize_t n = ::pread(file, block, sizeof block, off_t(text.size()));
    if (n <= 0) return text;
    text.append(block, size_t(n));
  }
}

// NAME=VALUE of what the program gets.
std::vector<std::string> environment_of(const Command& command) {
  std::map<std::string, std::string> values{
      {"OMPI_ALLOW_RUN_AS_ROOT", "1"},
      {"OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"},
      {"OMPI_MCA_rmaps_base_oversubscribe", "1"},
      {"OMPI_MCA_mpi_yield_when_idle", "1"},
      {"OMPI_MCA_btl_vader_single_copy_mechanism", "none"},  // else it warns in containers
  };
  for (char** e = environ; *e; ++e) {
    const std::string entry = *e;
    const size_t equals = entry.find('=');
    if (equals != std::string::npos) values[entry.substr(0, equals)] = entry.substr(equals + 1);
  }
  for (const auto& [name, value] : command.environment) values[name] = value;
  std::vector<std::string> entries;
  for (const auto& [name, value] : values) entries.push_back(name + "=" + value);
  return entries;
}

std::vector<char*> pointers(std::vector<std::string>& strings) {
  std::vector<char*> result;
  for (std::string& s : strings) result.push_back(s.data());
  result.push_back(nullptr);
  return result;
}

// Parent and name of a process, from /proc/PID/stat: "PID (NAME) STATE PARENT …".
bool read_stat(pid_t pid, pid_t& parent, std::string& name) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  if (!std::getline(file, text)) return false;
  const size_t open = text.find('('), close = text.rfind(')');
  if (open == std::string::npos || close == std::string::npos) return false;
  name = text.substr(open + 1, close - open - 1);
  parent = pid_t(std::atoi(text.c_str() + close + 4));
  return true;
}

// `root` and its descendants, with their names.
std::map<pid_t, std::string> family(pid_t root) {
  std::map<pid_t, std::pair<pid_t, std::string>> all;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", error)) {
    const pid_t pid = pid_t(std::atoi(entry.path().filename().c_str()));
    pid_t parent;
    std::string name;
    if (pid > 0 && read_stat(pid, parent, name)) all[pid] = {parent, name};
  }
  std::map<pid_t, std::string> found;
  for (const auto& [pid, entry] : all) {
    for (pid_t p = pid; all.contains(p); p = all[p].first) {
      if (p == root) found[pid] = entry.second;
    }
  }
  return found;
}

}  // namespace

std::string Outcome::text() const {
  return "status " + std::to_string(status) + (timed_out ? " (killed: out of time)" : "") +
         " after " + std::to_string(seconds) + " s\n--- stdout\n" + out + "--- stderr\n" + err +
         "---";
}

Process::Process(Command command) : command_(std::move(command)) {
  in_ = memory_file("stdin", command_.input);
  out_ = memory_file("stdout");
  err_ = memory_file("stderr");
  std::vector<std::string> environment = environment_of(command_);
  const std::vector<char*> arguments = pointers(command_.arguments),
                           entries = pointers(environment);
  start_ = now();
  pid_ = ::fork();
  if (pid_ < 0) throw std::runtime_error("fork: " + std::string(std::strerror(errno)));
  if (pid_ == 0) {
    ::setpgid(0, 0);
    unblock_all_signals();
    ::dup2(in_, 0);
    ::dup2(out_, 1);
    ::dup2(err_, 2);
    ::execvpe(arguments[0], arguments.data(), entries.data());
    ::_exit(127);
  }
}

Process::~Process() {
  if (!ended_) {
    kill_all();
    int ignored;
    ::waitpid(pid_, &ignored, 0);
  }
  for (const int file : {in_, out_, err_}) ::close(file);
}

double Process::seconds() const { return now() - start_; }

bool Process::running() {
  if (ended_) return false;
  if (!timed_out_ && seconds() > command_.time_limit_s) {
    timed_out_ = true;
    kill_all();
  }
  int status = 0;
  if (::waitpid(pid_, &status, WNOHANG) != pid_) return true;
  ended_ = true;
  status_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return false;
}

bool Process::wait_until(const std::function<bool()>& condition) {
  while (!condition()) {
    if (!running()) return false;
    std::this_thread::sleep_for(kPoll);
  }
  return true;
}

Outcome Process::wait() {
  wait_until([] { return false; });
  return {.status = status_,
          .timed_out = timed_out_,
          .seconds = seconds(),
          .out = content_of(out_),
          .err = content_of(err_)};
}

std::string Process::out_so_far() const { return content_of(out_); }

std::vector<pid_t> Process::find(const std::string& program) const {
  const std::string name = std::filesystem::path(program).filename().string().substr(0, 15);
  std::vector<pid_t> found;
  for (const auto& [pid, pid_name] : family(pid_)) {
    if (pid_name == name) found.push_back(pid);
  }
  return found;
}

void Process::kill_all() {
  for (const auto& [pid, name] : family(pid_)) ::kill(pid, SIGKILL);
}

Outcome run(Command command) { return Process(std::move(command)).wait(); }

}  // namespace lorashard::test
