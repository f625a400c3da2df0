// The one error type of the project and its two kinds.
//
// An Error ends the run. Its text has the contract's form "WHERE: what is wrong, and what would be
// right"; launch/ prints "error: " + text once, from one rank, and exits with its status.
// Assertions are for our own mistakes, never for input.
#pragma once

#include <stdexcept>
#include <string>

namespace lorashard {

// Exit statuses of the contract. Signals end with 128 + signal number.
inline constexpr int kExitInput = 2;    // wrong usage, configuration or input
inline constexpr int kExitFailure = 3;  // a failure while running: I/O, peer lost, non-finite loss

class Error : public std::runtime_error {
 public:
  Error(int exit_status, const std::string& where, const std::string& what)
      : std::runtime_error(where.empty() ? what : where + ": " + what), exit_status(exit_status) {}
  int exit_status;
  bool on_all_ranks = false;  // every rank throws this same error (parallel/agree.h)
};

// REQUIRES: `where` is file:line:column for configs, "file: tensor" for models, file:line for data.
[[noreturn]] inline void fail_input(const std::string& where, const std::string& what) {
  throw Error(kExitInput, where, what);
}
[[noreturn]] inline void fail_run(const std::string& where, const std::string& what) {
  throw Error(kExitFailure, where, what);
}
// REQUIRES: every rank throws this, with the same text, since all of them know what is wrong.
[[noreturn]] inline void fail_on_all_ranks(int exit_status, const std::string& where,
                                           const std::string& what) {
  Error error(exit_status, where, what);
  error.on_all_ranks = true;
  throw error;
}

}  // namespace lorashard
