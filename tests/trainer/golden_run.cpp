#include "tests/trainer/golden_run.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <fstream>
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

namespace {

bool sets(const std::vector<std::string>& settings, const std::string& setting) {
  return std::any_of(settings.begin(), settings.end(),
                     [&](const std::string& s) { return s.starts_with(setting + "="); });
}

RunResult run_config(const fs::path& file, const fs::path& out, int tensor, int data,
                     std::vector<std::string> settings, bool resume, int stop_after,
                     bool accept_changes) {
  settings.insert(settings.begin(),
                  {"output.dir=" + out.string(), "parallel.tensor=" + std::to_string(tensor)});
  if (!sets(settings, "compute.threads")) settings.push_back("compute.threads=1");
  // Programs with the CUDA backend run these tests a second time on it.
  const char* backend = std::getenv("LORASHARD_TEST_BACKEND");
  if (backend && !sets(settings, "compute.backend")) {
    settings.push_back("compute.backend=" + std::string(backend));
  }
  std::string model;
  run_thread_ranks(tensor * data, [&](Communicator& world) {
    const Config config = load_config(file.string(), settings);
    if (world.rank() == 0) model = config.run.model().path();
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
    const auto base = BaseModel::open(model);
    result.adapter = read_adapter(out / "adapter", base->config());
  }
  return result;
}

}  // namespace

RunResult run_golden(const std::string& name, const fs::path& out, int tensor, int data,
                     std::vector<std::string> settings, bool resume, int stop_after,
                     bool accept_changes) {
  const fs::path dir = golden("peft/" + name);
  for (const auto& [setting, path] : {std::pair{"model.path", "model"},
                                      {"data.train", "data.jsonl"},
                                      {"data.eval", "eval.jsonl"},
                                      {"lora.init_from", "adapter"}}) {
    if (!sets(settings, setting)) settings.push_back(setting + ("=" + (dir / path).string()));
  }
  return run_config(dir / "config.textproto", out, tensor, data, std::move(settings), resume,
                    stop_after, accept_changes);
}

RunResult run_case(const std::string& name, const fs::path& out, int tensor, int data,
                   std::vector<std::string> settings, bool resume, int stop_after,
                   bool accept_changes) {
  std::string text = read_text(golden("peft/" + name) / "config.textproto");
  const std::string from = "\"tests/golden/", to = "\"" + golden("").string();
  for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size()) {
    text.replace(at, from.size(), to);
  }
  const fs::path file = out.string() + ".textproto";
  std::ofstream(file) << text;
  return run_config(file, out, tensor, data, std::move(settings), resume, stop_after,
                    accept_changes);
}

double adapter_distance(const Adapter& x, const Adapter& y) {
  const auto of_x = tensors_of(x), of_y = tensors_of(y);
  EXPECT_EQ(of_x.size(), of_y.size());
  double worst = 0;
  for (size_t t = 0; t < of_x.size(); ++t) {
    EXPECT_EQ(of_x[t].file_name, of_y[t].file_name);
    const std::vector<float>&u = *of_x[t].values, &v = *of_y[t].values;
    EXPECT_EQ(u.size(), v.size());
    double difference = 0, norm = 0;
    for (size_t i = 0; i < u.size(); ++i) {
      difference += std::pow(double(u[i]) - v[i], 2);
      norm += std::pow(double(v[i]), 2);
    }
    worst = std::max(worst, std::sqrt(difference / norm));
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
