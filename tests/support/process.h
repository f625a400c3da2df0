// Running a program as a user would: its arguments, input, output, exit status, and signals.
#pragma once

#include <sys/types.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

namespace lorashard::test {

struct Command {
  std::vector<std::string> arguments;                   // the program first
  std::string input = {};                               // standard input
  std::map<std::string, std::string> environment = {};  // added to ours
  double time_limit_s = 90;  // then it is killed with all that it started
};

struct Outcome {
  int status = -1;  // exit status; 128 + signal if a signal ended it
  bool timed_out = false;
  double seconds = 0;
  std::string out, err;

  // Everything worth reading when an expectation fails.
  std::string text() const;
};

// A running command, in a process group of its own. Killed with all its descendants if it is still
// there when destroyed.
//
// What Open MPI needs to start as root and with more ranks than cores is in the environment unless
// the caller's has it already; MPICH looks at none of it.
class Process {
 public:
  explicit Process(Command command);
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  bool running();
  // Blocks until it ends or its time limit is over.
  Outcome wait();
  // Until condition() holds; false if the command ended, or its time was over, before.
  bool wait_until(const std::function<bool()>& condition);
  std::string out_so_far() const;

  pid_t pid() const { return pid_; }
  // The processes of this program's name among it and its descendants, in the order of their ids,
  // for example the ranks that mpirun started.
  std::vector<pid_t> find(const std::string& program) const;

  // Since its start.
  double seconds() const;

 private:
  void kill_all();

  Command command_;
  pid_t pid_ = -1;
  int in_ = -1, out_ = -1, err_ = -1;
  double start_ = 0;
  bool ended_ = false, timed_out_ = false;
  int status_ = -1;
};

// Starts the command and waits for its end.
Outcome run(Command command);

}  // namespace lorashard::test
