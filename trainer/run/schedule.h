// Learning-rate schedules, with the values of transformers' get_*_schedule_with_warmup.
#pragma once

#include <cstdint>

namespace lorashard {

enum class ScheduleKind : uint8_t { Constant, Linear, Cosine };

struct Schedule {
  ScheduleKind kind = ScheduleKind::Constant;
  int64_t warmup = 0;  // steps
  double minimum = 0;  // factor that Linear and Cosine fall to
  int64_t cycles = 1;  // of Cosine: it begins anew at 1 in each (transformers' hard restarts)
};

// The factor on the learning rate in optimizer step `step` (from 0) of `total`: rises linearly from
// 0 during warmup, then stays at 1, falls linearly to the minimum, or falls to it along half
// cosines.
double schedule_factor(const Schedule& schedule, int64_t step, int64_t total);

// Steps of warmup that are a share of all steps.
int64_t warmup_steps(double ratio, int64_t total);

}  // namespace lorashard
