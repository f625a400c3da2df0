// How the self-test judges a kernel: its result against what it should be.
#pragma once

#include <string>
#include <vector>

namespace lorashard::selftest {

// One output of a kernel, element by element.
struct Part {
  std::vector<double> got, want;
};

// The largest |got - want| / (|want| + root mean square of want). Infinite where the lengths
// differ, where a value is no number or infinite on one side alone, and where a result that should
// be zero throughout is not.
double largest_error(const std::vector<double>& got, const std::vector<double>& want);

enum class Verdict { PASS, FAIL, SKIP };

// One line of the report.
struct Check {
  std::string name, backend, type;
  double error = 0, tolerance = 0;
  std::string skipped;  // why, if it was
  std::string failure;  // the error that ended it, if one did

  Verdict verdict() const;
  std::string line() const;
};

struct Tally {
  int passed = 0, failed = 0, skipped = 0;
  void count(const Check& check);
  // "N passed, M failed, K skipped".
  std::string line() const;
};

}  // namespace lorashard::selftest
