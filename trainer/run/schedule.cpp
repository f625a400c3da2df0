#include "trainer/run/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace lorashard {

double schedule_factor(const Schedule& schedule, int64_t step, int64_t total) {
  const int64_t warmup = schedule.warmup;
  if (step < warmup) return double(step) / double(std::max<int64_t>(1, warmup));
  const double span = double(std::max<int64_t>(1, total - warmup));
  const auto above_minimum = [&](double factor) {
    return std::max(0.0, factor * (1 - schedule.minimum) + schedule.minimum);
  };
  switch (schedule.kind) {
    case ScheduleKind::Constant:
      return 1;
    case ScheduleKind::Linear:
      return above_minimum(double(total - step) / span);
    case ScheduleKind::Cosine: {
      const double progress = double(step - warmup) / span;
      const double within = std::fmod(double(schedule.cycles) * progress, 1.0);
      return above_minimum(0.5 * (1 + std::cos(std::numbers::pi * within)));
    }
  }
  return 1;
}

int64_t warmup_steps(double ratio, int64_t total) {
  return int64_t(std::ceil(double(total) * ratio));
}

}  // namespace lorashard
