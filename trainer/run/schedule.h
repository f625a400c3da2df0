// Learning-rate schedules, with the values of transformers' get_*_schedule_with_warmup.
#pragma once

#include <cstdint>

namespace lorashard {

enum class ScheduleKind : uint8_t { Constant, Linear, Cosine };

// The factor on the learning rate in optimizer step `step` (from 0) of `total`: rises linearly from
// 0 during `warmup` steps, then stays at 1, falls linearly to 0, or falls along half a cosine to 0.
double schedule_factor(ScheduleKind kind, int64_t step, int64_t warmup, int64_t total);

}  // namespace lorashard
