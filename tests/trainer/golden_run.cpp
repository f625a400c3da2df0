#include "tests/trainer/golden_run.h"

#include <gtest/gtest.h>

#include <cmath>
#include <csignal>
#include <cstdlib>
#include <sstream>

#include "checkpoint/base_model.h"
#include "parallel/threads.h"
#include "trainer/run/train.h"

namespace lorashard::test {

fs::path golden(const std::string& name) {
  return fs::path(LORASHARD_SOURCE_DIR) / "tests" / "golden" / name;
}

nlohmann::json read_json(const fs::path& path) { return nlohmann::json::parse(read_text(path)); }

std::vector<nlohmann::json> read_json_lines(const fs::path& path) {
  std::istringstream text(read_text(path));
  std::vector<nlohmann::json> lines;
  for (std::string line; std::getline(text, line);) lines.push_back(nlohmann::json::parse(line));
  return lines;
}

RunResult run_golden(const std::string& name, const fs::path& out, int tensor, int data,
                     std::vector<std::string> settings, bool resume, int stop_after,
                     bool accept_changes) {
  const fs::path dir = golden("peft/" + name);
  settings.insert(settings.begin(),
                  {"output.dir=" + out.string(), "parallel.tensor=" + std::to_string(tensor)});
  const auto override_path = [&](const std::string& setting, const fs::path& path) {
    for (const std::string& s : settings) {
      if (s.starts_with(setting + "=")) return;
    }
    settings.push_back(setting + "=" + path.string());
  };
  override_path("model.path", dir / "model");
  override_path("data.train", dir / "data.jsonl");
  override_path("data.eval", dir / "eval.jsonl");
  override_path("lora.init_from", dir / "adapter");
  override_path("compute.threads", "1");
  // Programs with the CUDA backend run these tests a second time on it.
  if (const char* backend = std::getenv("LORASHARD_TEST_BACKEND")) {
    override_path("compute.backend", backend);
  }
  run_thread_ranks(tensor * data, [&](Communicator& world) {
    const Config config = load_config((dir / "config.textproto").string(), settings);
    int calls = 0;
    TrainOptions options;
    options.resume = resume;
    options.accept_changes = accept_changes;
    options.stop_signal = [&] { return stop_after > 0 && ++calls >= stop_after ? SIGTERM : 0; };
    train(config, Ranks{world, tensor * data, world.rank()}, options);
  });
  RunResult result;
  result.metrics = read_json_lines(out / "metrics.jsonl");
  if (stop_after == 0) {
    const auto base = BaseModel::open((dir / "model").string());
    result.adapter = read_adapter(out / "adapter", linear_modules(base->config()));
  }
  return result;
}

double adapter_distance(const Adapter& x, const Adapter& y) {
  EXPECT_EQ(x.modules.size(), y.modules.size());
  double worst = 0;
  for (size_t m = 0; m < x.modules.size(); ++m) {
    for (const auto factor : {&AdapterModule::a, &AdapterModule::b}) {
      const std::vector<float>& u = x.modules[m].*factor;
      const std::vector<float>& v = y.modules[m].*factor;
      EXPECT_EQ(u.size(), v.size());
      double difference = 0, norm = 0;
      for (size_t i = 0; i < u.size(); ++i) {
        difference += std::pow(double(u[i]) - v[i], 2);
        norm += std::pow(double(v[i]), 2);
      }
      worst = std::max(worst, std::sqrt(difference / norm));
    }
  }
  return worst;
}

double metric_distance(const std::vector<nlohmann::json>& x, const std::vector<nlohmann::json>& y,
                       const std::string& field) {
  EXPECT_EQ(x.size(), y.size());
  double worst = 0;
  for (size_t i = 0; i < std::min(x.size(), y.size()); ++i) {
    const double a = x[i].at(field), b = y[i].at(field);
    worst = std::max(worst, std::fabs(a - b) / std::max(std::fabs(b), 1e-12));
  }
  return worst;
}

}  // namespace lorashard::test
