// Learning rates against transformers' own functions.
#include <gtest/gtest.h>

#include "configs/config.h"
#include "tests/trainer/golden_run.h"
#include "trainer/run/run_options.h"

namespace lorashard::test {
namespace {

// Cases of a file: settings of a run, and the rate in each step as RATES, or as a factor.
int check_cases(const fs::path& file) {
  int checked = 0;
  for (const auto& c : read_json(file)) {
    RunConfig run;
    RunConfig::Schedule& schedule = *run.mutable_schedule();
    const std::string kind = c.at("kind");
    schedule.set_kind(kind == "CONSTANT" ? RunConfig::Schedule::CONSTANT
                      : kind == "LINEAR" ? RunConfig::Schedule::LINEAR
                                         : RunConfig::Schedule::COSINE);
    schedule.set_warmup_steps(c.value("warmup_steps", 0));
    schedule.set_warmup_ratio(c.value("warmup_ratio", 0.0));
    schedule.set_min_learning_rate(c.value("min_learning_rate", 0.0));
    schedule.set_cycles(c.value("cycles", 1));
    const double peak = c.value("learning_rate", 1.0);
    run.mutable_optimizer()->set_learning_rate(peak);
    const auto rates = c.at(c.contains("rates") ? "rates" : "factor").get<std::vector<double>>();
    for (size_t s = 0; s < rates.size(); ++s, ++checked) {
      EXPECT_NEAR(learning_rate(run, int64_t(s), c.at("steps")), rates[s], 1e-12 * peak)
          << "step " << s << " of " << c;
    }
  }
  return checked;
}

TEST(Schedule, HasTheValuesOfTransformers) {
  EXPECT_GT(check_cases(golden("schedules.json")), 50);
  EXPECT_GT(check_cases(golden("schedule_shapes.json")), 500);
}

}  // namespace
}  // namespace lorashard::test
