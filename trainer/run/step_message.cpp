#include "trainer/run/step_message.h"

#include <algorithm>
#include <cassert>
#include <cstring>

namespace lorashard {
namespace {

// Totals, unmasked (2), tokens (2), four flags; then each rank's rss in a place of its own.
constexpr int64_t kTotals = 2 * kLossTotals, kFixed = kTotals + 8;

// A count is two floats whose sums over up to 4096 ranks stay exact.
constexpr int64_t kCountBase = 4096;

}  // namespace

int64_t StepMessage::floats(int world_size) { return kFixed + world_size; }

std::vector<float> StepMessage::encode(int rank, int world_size) const {
  std::vector<float> message(kTotals);
  for (const int64_t count : {unmasked, tokens}) {
    message.push_back(float(count / kCountBase));
    message.push_back(float(count % kCountBase));
  }
  for (const bool flag : {interrupted, terminated, left, slow}) message.push_back(flag);
  assert(int64_t(message.size()) == kFixed);
  message.resize(size_t(floats(world_size)));
  message[size_t(kFixed + rank)] = float(rss_mib);
  return message;
}

StepMessage StepMessage::decode(std::span<const float> sum) {
  StepMessage m;
  double totals[kLossTotals];
  for (size_t i = 0; i < size_t(kLossTotals); ++i) {
    totals[i] = double(sum[2 * i]) + double(sum[2 * i + 1]);
  }
  std::memcpy(static_cast<void*>(&m.totals), totals, sizeof totals);
  size_t at = kTotals;
  for (int64_t* count : {&m.unmasked, &m.tokens}) {
    *count = int64_t(sum[at]) * kCountBase + int64_t(sum[at + 1]);
    at += 2;
  }
  for (bool* flag : {&m.interrupted, &m.terminated, &m.left, &m.slow}) *flag = sum[at++] > 0;
  m.rss_mib = *std::max_element(sum.begin() + kFixed, sum.end());
  return m;
}

}  // namespace lorashard
