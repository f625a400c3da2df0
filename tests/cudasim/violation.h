// What a simulated program did wrong.
//
// A violation met while a stream runs ends what the device had to do. As on a real device the error
// stays: every later call that synchronises or launches returns cudaErrorLaunchFailure, whose
// text (cudaGetErrorString) is the violation's. A program that ends with a violation that no test
// has taken exits with kUntakenStatus.
#pragma once

#include <stdexcept>
#include <string>

namespace cudasim {

class Violation : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

inline constexpr int kUntakenStatus = 86;

// Notes the violation for the device, and says it on stderr.
void set_violation(int device, const std::string& text);
bool has_violation(int device);
// For cudaGetErrorString: the text of the violation last noted in this process.
const char* violation_text();
// The texts noted since the last call, which are hereby expected; the devices work again. For
// tests.
std::string take_violations();

}  // namespace cudasim
