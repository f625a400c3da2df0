// Training runs of the reference cases (tests/golden/peft) inside the test process, on ranks that
// are threads.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "checkpoint/adapter.h"
#include "checkpoint/file_io.h"

namespace lorashard::test {

struct RunResult {
  std::vector<nlohmann::json> metrics;  // lines of metrics.jsonl
  Adapter adapter;                      // RUN/adapter
};

fs::path golden(const std::string& name);  // tests/golden/NAME
nlohmann::json read_json(const fs::path& path);
std::vector<nlohmann::json> read_json_lines(const fs::path& path);

// Trains tests/golden/peft/CASE with `settings` ("path=value") over its config into `out`.
// `stop_after` > 0: SIGTERM arrives in that step, counted from the start of this call.
RunResult run_golden(const std::string& name, const fs::path& out, int tensor, int data,
                     std::vector<std::string> settings = {}, bool resume = false,
                     int stop_after = 0, bool accept_changes = false);

// The same of a case whose config.textproto says where everything is (paths from the top of the
// tree), and which may be of another case's model.
RunResult run_case(const std::string& name, const fs::path& out, int tensor, int data,
                   std::vector<std::string> settings = {}, bool resume = false, int stop_after = 0,
                   bool accept_changes = false);

// Largest |x - y| / |y| over the tensors, in the Euclidean norm of each.
double adapter_distance(const Adapter& x, const Adapter& y);
// Largest relative difference of one field over the steps.
double metric_distance(const std::vector<nlohmann::json>& x, const std::vector<nlohmann::json>& y,
                       const std::string& field);

}  // namespace lorashard::test
