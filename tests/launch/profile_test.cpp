// train --profile: one file of all ranks' spans, in Chrome's trace format.
#include "tests/launch/scene.h"

#include <set>

namespace lorashard::test {
namespace {

constexpr int kRanks = 2, kSteps = 3;

// On CUDA the spans are those of the host, which enqueues.
bool on_cuda() {
  const char* backend = std::getenv("LORASHARD_TEST_BACKEND");
  return backend && std::string(backend) == "CUDA";
}

class Profile : public testing::Test {
 protected:
  std::vector<std::string> arguments(const fs::path& file) const {
    return {"--set",     "parallel.tensor=" + std::to_string(kRanks),
            "--set",     "train.steps=" + std::to_string(kSteps),
            "--profile", file.string()};
  }
  // The complete events of `rank`, by category.
  std::map<std::string, std::vector<json>> spans_of(int rank) const {
    std::map<std::string, std::vector<json>> spans;
    for (const json& e : events_) {
      if (e.at("ph") == "X" && e.at("pid") == rank) spans[e.at("cat")].push_back(e);
    }
    return spans;
  }
  Scene scene_;
  const std::string kernel_ = on_cuda() ? "enqueue" : "kernel";
  json events_;
};

std::set<std::string> names_of(const std::vector<json>& spans) {
  std::set<std::string> names;
  for (const json& e : spans) names.insert(e.at("name"));
  return names;
}

TEST_F(Profile, HasTheSpansOfEveryRank) {
  const fs::path file = scene_.dir / "profile.json";
  const Outcome done = scene_.train(kRanks, arguments(file));
  ASSERT_EQ(done.status, 0) << done.text();
  EXPECT_EQ(lines_with(done.out, "profile written to " + file.string()).size(), 1u) << done.out;
  events_ = json::parse(read_file(file));  // throws unless it is JSON
  ASSERT_TRUE(events_.is_array());

  std::map<int, std::string> processes;
  for (const json& e : events_) {
    if (e.at("ph") != "M") continue;
    EXPECT_EQ(e.at("name"), "process_name");
    processes[e.at("pid")] = e.at("args").at("name");
  }
  ASSERT_EQ(processes.size(), size_t(kRanks));
  for (int r = 0; r < kRanks; ++r) {
    SCOPED_TRACE("rank " + std::to_string(r));
    EXPECT_TRUE(processes.at(r).starts_with("rank " + std::to_string(r))) << processes.at(r);
    EXPECT_EQ(processes.at(r).find("enqueued") != std::string::npos, on_cuda()) << processes.at(r);
    auto spans = spans_of(r);
    ASSERT_EQ(spans["step"].size(), size_t(kSteps));
    const std::set<std::string> kernels = names_of(spans[kernel_]);
    for (const char* name : {"matmul_nt", "matmul_nn", "matmul_tn", "attention_forward",
                             "attention_backward", "rms_norm_forward", "rope", "adamw"}) {
      EXPECT_TRUE(kernels.contains(name)) << name;
    }
    EXPECT_TRUE(names_of(spans["collective"]).contains("lora_gradient"));
    EXPECT_TRUE(names_of(spans["layer"]).contains("loss"));
    EXPECT_TRUE(names_of(spans["lora"]).contains("lora"));
    EXPECT_EQ(spans.size(), 5u) << "step, layer, lora, kernel and collective are all categories";

    // Times: nothing takes none, and layers and kernels lie within the steps.
    for (const auto& [category, all] : spans) {
      for (const json& e : all) {
        const double start = e.at("ts"), time = e.at("dur");
        EXPECT_GT(time, 0) << e;
        if (category == "collective") continue;  // one more behind the last step
        const bool in_a_step =
            std::any_of(spans["step"].begin(), spans["step"].end(), [&](const json& step) {
              const double from = step.at("ts"), to = from + step.at("dur").get<double>();
              return start >= from && start + time <= to + 0.01;
            });
        EXPECT_TRUE(in_a_step) << e;
      }
    }
  }
}

// A rate is work by time, and stands only where the time is that of the work.
TEST_F(Profile, ARateIsWorkByTime) {
  const fs::path file = scene_.dir / "profile.json";
  const Outcome done = scene_.train(kRanks, arguments(file));
  ASSERT_EQ(done.status, 0) << done.text();
  events_ = json::parse(read_file(file));
  for (int r = 0; r < kRanks; ++r) {
    size_t gemms = 0, all_reduces = 0;
    for (const auto& [category, all] : spans_of(r)) {
      const char* work = category == kernel_ ? "flops" : "bytes";
      for (const json& e : all) {
        const std::string name = e.at("name");
        if (name.starts_with("matmul")) ++gemms;
        if (name == "lora_gradient") ++all_reduces;
        if (!e.contains("args")) {
          EXPECT_FALSE(name.starts_with("matmul") || name == "lora_gradient") << e;
          continue;
        }
        const double amount = e.at("args").at(work),
                     rate = amount * 1e-3 / e.at("dur").get<double>();
        EXPECT_GT(amount, 0) << e;
        if (on_cuda()) {
          EXPECT_FALSE(e.at("args").contains("G per s")) << e;
        } else {
          EXPECT_NEAR(e.at("args").at("G per s").get<double>(), rate, 0.05 + 1e-3 * rate) << e;
        }
      }
    }
    EXPECT_GT(gemms, 0u);
    EXPECT_EQ(all_reduces, size_t(kSteps));
  }
}

TEST_F(Profile, ThatCannotBeWrittenEndsARunThatIsWhole) {
  const fs::path file = scene_.dir / "no_such_folder" / "profile.json";
  const Outcome done = scene_.train(kRanks, arguments(file));
  EXPECT_EQ(done.status, 3) << done.text();
  EXPECT_EQ(lines_with(done.err, "error: " + file.string()).size(), 1u) << done.text();
  EXPECT_TRUE(fs::exists(scene_.run / "adapter" / "adapter_model.safetensors"));
}

}  // namespace
}  // namespace lorashard::test
