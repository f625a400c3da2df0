#include "trainer/run/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace lorashard {

double schedule_factor(ScheduleKind kind, int64_t step, int64_t warmup, int64_t total) {
  if (step < warmup) return double(step) / double(std::max<int64_t>(1, warmup));
  const double span = double(std::max<int64_t>(1, total - warmup));
  switch (kind) {
    case ScheduleKind::Constant:
      return 1;
    case ScheduleKind::Linear:
      return std::max(0.0, double(total - step) / span);
    case ScheduleKind::Cosine: {
      const double progress = double(step - warmup) / span;
      return std::max(0.0, 0.5 * (1 + std::cos(std::numbers::pi * progress)));
    }
  }
  return 1;
}

}  // namespace lorashard
