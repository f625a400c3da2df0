#include "launch/selftest/compare.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>

namespace lorashard::selftest {

double largest_error(const std::vector<double>& got, const std::vector<double>& want) {
  constexpr double kWrong = std::numeric_limits<double>::infinity();
  if (got.size() != want.size()) return kWrong;
  double squares = 0, worst = 0;
  for (double w : want) squares += std::isfinite(w) ? w * w : 0;
  const double size = std::sqrt(squares / double(std::max<size_t>(1, want.size())));
  for (size_t i = 0; i < want.size(); ++i) {
    if (got[i] == want[i]) continue;
    const double error = std::abs(got[i] - want[i]) / (std::abs(want[i]) + size);
    if (!std::isfinite(error)) return kWrong;
    worst = std::max(worst, error);
  }
  return worst;
}

Verdict Check::verdict() const {
  if (!skipped.empty()) return Verdict::SKIP;
  // Written so that a NaN fails.
  return failure.empty() && error <= tolerance ? Verdict::PASS : Verdict::FAIL;
}

std::string Check::line() const {
  const std::string what = fmt::format("{:<28} {:<4} {:<4}", name, backend, type);
  if (verdict() == Verdict::SKIP) return fmt::format("SKIP {} {}", what, skipped);
  const char* word = verdict() == Verdict::PASS ? "PASS" : "FAIL";
  std::string text =
      fmt::format("{} {} largest error {:.1e}, tolerance {:.1e}", word, what, error, tolerance);
  return failure.empty() ? text : text + ": " + failure;
}

void Tally::count(const Check& check) {
  switch (check.verdict()) {
    case Verdict::PASS:
      ++passed;
      break;
    case Verdict::FAIL:
      ++failed;
      break;
    case Verdict::SKIP:
      ++skipped;
      break;
  }
}

std::string Tally::line() const {
  return fmt::format("{} passed, {} failed, {} skipped", passed, failed, skipped);
}

}  // namespace lorashard::selftest
