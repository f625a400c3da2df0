// The main job: fine-tuning on ranks of MPI, tensor parallel and data parallel.
#include <cmath>
#include <set>

#include "tests/launch/scene.h"

namespace lorashard::test {
namespace {

struct Job {
  std::string model;
  int tensor, data;
};
void PrintTo(const Job& job, std::ostream* out) {
  *out << job.model << " TP=" << job.tensor << " DP=" << job.data;
}

class MainJob : public testing::TestWithParam<Job> {};

// Against the values of torch + PEFT, whatever the layout: 6 query heads, 2 or 3 key/value heads,
// and sizes 48, 100, 301 that most degrees do not divide.
TEST_P(MainJob, GivesTheReferenceLossesAndLeavesAWholeRun) {
  const Job job = GetParam();
  const Scene scene(job.model);
  const Outcome done =
      scene.train(job.tensor * job.data, {"--set", "parallel.tensor=" + std::to_string(job.tensor),
                                          "--set", "checkpoint.every=3", "--set",
                                          "checkpoint.keep_last=2", "--set", "train.eval_every=4"});
  ASSERT_EQ(done.status, 0) << done.text();
  EXPECT_EQ(lines_with(done.err, "error").size(), 0u) << done.text();

  const json& steps = scene.expected.at("steps");
  const std::vector<json> metrics = json_lines(scene.run / "metrics.jsonl");
  ASSERT_EQ(metrics.size(), steps.size());
  for (size_t i = 0; i < steps.size(); ++i) {
    const json& m = metrics[i];
    SCOPED_TRACE(m.dump());
    EXPECT_EQ(m.at("step"), i + 1);
    const double loss = steps[i].at("loss"), norm = steps[i].at("grad_norm");
    EXPECT_NEAR(m.at("loss").get<double>(), loss, 2e-4 * loss);
    EXPECT_NEAR(m.at("grad_norm").get<double>(), norm, 2e-4 * norm);
    EXPECT_NEAR(m.at("learning_rate").get<double>(), steps[i].at("learning_rate").get<double>(),
                1e-12);
    const double seconds = m.at("step_time_s"), rate = m.at("tokens_per_s"),
                 tokens = m.at("tokens");
    EXPECT_GT(seconds, 0);
    EXPECT_GE(tokens, steps[i].at("counted_labels").get<double>());
    EXPECT_NEAR(rate, tokens / seconds, 1e-6 * rate);
    EXPECT_GT(m.at("peak_rss_mib").get<double>(), 1);
    EXPECT_LT(m.at("peak_rss_mib").get<double>(), 1024);
    EXPECT_EQ(m.contains("eval_loss"), (i + 1) % 4 == 0);
    // One line a step on the console.
    const std::string head = "step " + std::to_string(i + 1) + "/8 ";
    EXPECT_EQ(lines_with(done.out, head).size(), 1u) << done.out;
  }
  EXPECT_EQ(lines_with(done.out, "\r").size(), 0u) << "a progress bar without a terminal";

  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(scene.run)) names.insert(entry.path().filename());
  for (const char* name : {"config.textproto", "metrics.jsonl", "checkpoints", "adapter"}) {
    EXPECT_TRUE(names.contains(name)) << name;
  }
  names.clear();
  for (const auto& entry : fs::directory_iterator(scene.run / "checkpoints")) {
    names.insert(entry.path().filename());
  }
  EXPECT_EQ(names, (std::set<std::string>{"latest", "step-000006", "step-000008"}));
  EXPECT_EQ(read_file(scene.run / "checkpoints/latest"), "step-000008\n");
  for (const char* name : {"adapter_model.safetensors", "adapter_config.json",
                           "trainer_state.safetensors", "manifest.textproto"}) {
    EXPECT_TRUE(fs::is_regular_file(scene.run / "checkpoints/step-000008" / name)) << name;
  }
  for (const char* name : {"adapter_model.safetensors", "adapter_config.json"}) {
    EXPECT_TRUE(fs::is_regular_file(scene.run / "adapter" / name)) << name;
  }

  // The loss of the finished adapter, at this layout and at another.
  const double expected = scene.expected.at("eval_loss");
  EXPECT_NEAR(metrics.back().at("eval_loss").get<double>(), expected, 2e-4 * expected);
  EXPECT_NEAR(
      scene.eval_loss(job.tensor * job.data, job.tensor, scene.model, scene.run / "adapter"),
      metrics.back().at("eval_loss").get<double>(), 1e-5);
  EXPECT_NEAR(scene.eval_loss(0, 1, scene.model, scene.run / "adapter"), expected, 2e-4 * expected);

  // The resolved configuration makes the same run again.
  Scene again(job.model);
  write_file(again.config, replace_all(read_file(scene.run / "config.textproto"),
                                       scene.run.string(), again.run.string()));
  const Outcome repeated = again.train(job.tensor * job.data);
  ASSERT_EQ(repeated.status, 0) << repeated.text();
  EXPECT_EQ(losses(scene.run, 8), losses(again.run, 8));
  EXPECT_EQ(read_file(scene.run / "adapter/adapter_model.safetensors"),
            read_file(again.run / "adapter/adapter_model.safetensors"));
}

INSTANTIATE_TEST_SUITE_P(Layouts, MainJob, testing::Values(Job{"llama2", 2, 2}, Job{"qwen3", 3, 1}),
                         [](const auto& info) {
                           return info.param.model + "_TP" + std::to_string(info.param.tensor) +
                                  "_DP" + std::to_string(info.param.data);
                         });

// Ranks share the work and print nothing twice; data-parallel ranks may be more than sequences of
// the evaluation file (5 lines on 6 ranks).
TEST(MainJobRanks, SixRanksOfWhichOneEvaluatesNothing) {
  const Scene scene;
  const double alone = scene.eval_loss(0, 1, scene.model, scene.adapter);
  EXPECT_NEAR(scene.eval_loss(6, 1, scene.model, scene.adapter), alone, 1e-5);
}

}  // namespace
}  // namespace lorashard::test
