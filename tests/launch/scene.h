// What whole-program tests share: a folder with a small model, its data and a run configuration,
// and the program's commands on it, alone or on MPI ranks.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "tests/launch/programs.h"
#include "tests/support/process.h"
#include "tests/support/temp_dir.h"
#include "tests/support/text.h"

namespace lorashard::test {

namespace fs = std::filesystem;
using nlohmann::json;

inline std::string read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

inline void write_file(const fs::path& path, const std::string& text) {
  fs::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
}

// The objects of a JSONL file; a last line without its end is left out.
inline std::vector<json> json_lines(const fs::path& path) {
  std::vector<json> lines;
  std::istringstream text(read_file(path));
  for (std::string line; std::getline(text, line) && !text.eof();) {
    lines.push_back(json::parse(line));
  }
  return lines;
}

inline std::vector<std::string> lines_with(const std::string& text, const std::string& part) {
  std::vector<std::string> found;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.find(part) != std::string::npos) found.push_back(line);
  }
  return found;
}

// Copies of a model with its adapter, data and configuration (tests/golden/peft/NAME; 8 steps of 4
// sequences out of 16, with values from torch + PEFT in expected.json).
struct Scene {
  TempDir dir;
  fs::path model = dir / "model", adapter = dir / "adapter", data = dir / "data.jsonl",
           eval = dir / "eval.jsonl", config = dir / "config.textproto", run = dir / "run";
  json expected;

  explicit Scene(const std::string& name = "llama2") {
    const fs::path golden = fs::path(LORASHARD_SOURCE_DIR) / "tests/golden/peft" / name;
    fs::copy(golden, dir.path(), fs::copy_options::recursive);
    expected = json::parse(read_file(golden / "expected.json"));
    std::string text = read_file(config);
    text = replace_all(text, "tests/golden/peft/" + name, dir.path().string());
    text = replace_all(text, "runs/" + name, run.string());
    // One thread a rank: two that wait for each other crawl where other tests take their processor.
    text = replace_all(text, "compute { ", "compute { threads: 1 ");
    // Programs with the CUDA backend run these tests a second time on it.
    if (const char* backend = std::getenv("LORASHARD_TEST_BACKEND")) {
      text = replace_all(text, "backend: CPU", "backend: " + std::string(backend));
    }
    write_file(config, text);
  }

  void change_config(const std::string& from, const std::string& to) {
    const std::string text = read_file(config);
    ASSERT_NE(text.find(from), std::string::npos) << from << " is not in " << text;
    write_file(config, replace_all(text, from, to));
  }

  // The program with these arguments; under mpirun if ranks > 0. Weight digests are remembered in
  // the scene, so that no other run's memory helps.
  Command command(int ranks, const std::vector<std::string>& arguments) const {
    Command c;
    if (ranks > 0) c.arguments = {MPIEXEC, "-n", std::to_string(ranks)};
    c.arguments.push_back(kLorashard);
    c.arguments.insert(c.arguments.end(), arguments.begin(), arguments.end());
    c.environment["XDG_CACHE_HOME"] = (dir / ".cache").string();
    return c;
  }
  // `train` or `eval` with the scene's configuration and these further arguments.
  std::vector<std::string> configured(const std::string& subcommand,
                                      const std::vector<std::string>& more = {}) const {
    std::vector<std::string> arguments{subcommand, config.string()};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  Outcome train(int ranks, const std::vector<std::string>& more = {}) const {
    return test::run(command(ranks, configured("train", more)));
  }
  Outcome lorashard(const std::vector<std::string>& arguments) const {
    return test::run(command(0, arguments));
  }
  // The loss that `eval` prints for the base at `model_dir`, with an adapter unless that is empty.
  double eval_loss(int ranks, int tensor, const fs::path& model_dir,
                   const fs::path& adapter_dir) const {
    std::vector<std::string> more{"--set", "model.path=" + model_dir.string(), "--set",
                                  "parallel.tensor=" + std::to_string(tensor)};
    if (!adapter_dir.empty()) more.insert(more.end(), {"--adapter", adapter_dir.string()});
    const Outcome done = test::run(command(ranks, configured("eval", more)));
    double loss = 0, perplexity = 0;
    if (done.status != 0 ||
        std::sscanf(done.out.c_str(), "loss %lf perplexity %lf", &loss, &perplexity) != 2) {
      ADD_FAILURE() << done.text();
    }
    EXPECT_NEAR(perplexity, std::exp(loss), 1e-3 * perplexity);
    return loss;
  }

  // Every file, folder and file content under the scene, but for what the cache remembers.
  std::map<std::string, std::string> tree() const {
    std::map<std::string, std::string> found;
    for (auto it = fs::recursive_directory_iterator(dir.path());
         it != fs::recursive_directory_iterator(); ++it) {
      if (it->path().filename() == ".cache") {
        it.disable_recursion_pending();
        continue;
      }
      found[it->path().string()] = it->is_regular_file() ? read_file(it->path()) : "";
    }
    return found;
  }
};

// The names that two trees do not share, or whose content differs.
inline std::vector<std::string> difference(const std::map<std::string, std::string>& a,
                                           const std::map<std::string, std::string>& b) {
  std::vector<std::string> names;
  for (const auto& [name, content] : a) {
    if (!b.contains(name) || b.at(name) != content) names.push_back(name);
  }
  for (const auto& [name, content] : b) {
    if (!a.contains(name)) names.push_back(name);
  }
  return names;
}

// The command ended by itself with this status and reported one error, "error: WHERE: WHAT", with
// WHERE as given, or something inside it ("FILE: TENSOR", "DIR/FILE"), and every one of `parts` in
// the line. Returns the line.
inline std::string expect_one_error(const Outcome& done, int status, const std::string& where,
                                    const std::vector<std::string>& parts = {}) {
  EXPECT_FALSE(done.timed_out) << done.text();
  EXPECT_EQ(done.status, status) << done.text();
  const std::vector<std::string> lines = lines_with(done.err, "error: ");
  EXPECT_EQ(lines.size(), 1u) << done.text();
  if (lines.empty()) return "";
  const std::string head = "error: " + where;
  EXPECT_TRUE(lines[0].starts_with(head + ": ") || lines[0].starts_with(head + "/"))
      << "expected WHERE " << where << " in\n"
      << done.text();
  for (const std::string& part : parts) {
    EXPECT_NE(lines[0].find(part), std::string::npos) << part << " is not in\n" << done.text();
  }
  return lines[0];
}

// Losses of metrics.jsonl whose steps must be 1, 2, … count.
inline std::vector<double> losses(const fs::path& run, size_t count) {
  std::vector<double> values;
  for (const json& line : json_lines(run / "metrics.jsonl")) {
    EXPECT_EQ(line.at("step"), values.size() + 1) << line;
    values.push_back(line.at("loss"));
  }
  EXPECT_EQ(values.size(), count);
  return values;
}

}  // namespace lorashard::test
