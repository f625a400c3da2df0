// Ranks whose inputs differ: the job ends before its first step and names the file, or the setting,
// and the rank. Each rank starts in a folder of its own, which stands for its host's disk.
#include "tests/launch/scene.h"

namespace lorashard::test {
namespace {

struct TwoDisks : Scene {
  fs::path disks[2] = {dir / "disk0", dir / "disk1"};

  explicit TwoDisks(const std::string& name = "llama2") : Scene(name) {
    write_file(config, replace_all(read_file(config), dir.path().string() + "/", ""));
    for (const fs::path& disk : disks) {
      fs::create_directory(disk);
      for (const char* part :
           {"model", "adapter", "data.jsonl", "eval.jsonl", "config.textproto"}) {
        fs::copy(dir / part, disk / part, fs::copy_options::recursive);
      }
    }
  }

  // One rank in each folder, with arguments of its own.
  Outcome start(const std::vector<std::string>& both, const std::vector<std::string>& second = {}) {
    Command c;
    c.arguments = {MPIEXEC};
    for (int r = 0; r < 2; ++r) {
      if (r > 0) c.arguments.push_back(":");
      c.arguments.insert(c.arguments.end(), {"-n", "1", "--wdir", disks[r].string(), kLorashard});
      c.arguments.insert(c.arguments.end(), both.begin(), both.end());
      if (r > 0) c.arguments.insert(c.arguments.end(), second.begin(), second.end());
    }
    c.environment["XDG_CACHE_HOME"] =
        (dir / ".cache").string();  // as of a home folder that hosts share
    return test::run(c);
  }

  // Flips one bit near the end of a file of the second disk; size and time stay.
  void make_stale(const std::string& name) {
    const fs::path file = disks[1] / name;
    const auto time = fs::last_write_time(file);
    std::string text = read_file(file);
    ASSERT_FALSE(text.empty());
    text[text.size() - 3] = char(text[text.size() - 3] ^ 1);
    write_file(file, text);
    fs::last_write_time(file, time);
  }
};

const std::vector<std::string> kTrain{"train", "config.textproto"};

TEST(Inputs, EqualCopiesTrainAndTheCacheIsEachRanksOwn) {
  TwoDisks scene;
  for (int again = 0; again < 2; ++again) {
    fs::remove_all(scene.disks[0] / "run");
    const Outcome done = scene.start(kTrain);
    ASSERT_EQ(done.status, 0) << done.text();
    const std::vector<double> found = losses(scene.disks[0] / "run", 8);
    for (size_t i = 0; i < found.size(); ++i) {
      const double expected = scene.expected.at("steps")[i].at("loss");
      EXPECT_NEAR(found[i], expected, 2e-4 * expected);
    }
  }
  fs::remove_all(scene.disks[0] / "run");
  // What was remembered of the copies before does not hide that one has changed.
  scene.make_stale("model/model.safetensors");
  expect_one_error(scene.start(kTrain), 2, "model/model.safetensors: model.norm.weight",
                   {"is another tensor", "rank 1 on host "});
}

// A stale copy of each file that decides what is computed.
TEST(Inputs, AStaleCopyIsNamed) {
  TwoDisks scene;
  const std::vector<std::string> with_adapter{"train", "config.textproto", "--set",
                                              "lora.init_from=adapter"};
  for (const char* name :
       {"data.jsonl", "model/config.json", "adapter/adapter_model.safetensors"}) {
    SCOPED_TRACE(name);
    const std::string before = read_file(scene.disks[1] / name);
    const std::string end = std::string(name).ends_with(".safetensors") ? "" : "\n";
    if (end.empty()) {
      scene.make_stale(name);
    } else {
      write_file(scene.disks[1] / name, before + end);
    }
    fs::remove_all(scene.disks[0] / "run");
    expect_one_error(scene.start(with_adapter), 2, name,
                     {"is another file on rank 1 on host ", "than on rank 0 on host "});
    EXPECT_FALSE(fs::exists(scene.disks[0] / "run"));
    write_file(scene.disks[1] / name, before);
  }
  write_file(scene.disks[1] / "data.jsonl", read_file(scene.dir / "data.jsonl") + "\n");
  write_file(scene.disks[1] / "eval.jsonl", read_file(scene.dir / "eval.jsonl") + "\n");
  expect_one_error(scene.start({"eval", "config.textproto"}), 2, "eval.jsonl", {"rank 1 on host "});
}

TEST(Inputs, OtherSettingsAreNamedWithBothValues) {
  TwoDisks scene;
  const auto expect = [&](const std::vector<std::string>& second, const std::string& where,
                          const std::vector<std::string>& parts) {
    SCOPED_TRACE(parts[0]);
    expect_one_error(scene.start(kTrain, second), 2, where, parts);
    EXPECT_FALSE(fs::exists(scene.disks[0] / "run"));
  };
  expect({"--set", "train.steps=200"}, "--set train.steps",
         {"train.steps is 200 on rank 1 on host ", " and 8 on rank 0"});
  expect({"--set", "lora.target_modules=q_proj"}, "--set lora.target_modules",
         {"lora.target_modules is \"q_proj\" on rank 1 on host ", " and not set on rank 0"});
  expect({"--resume"}, "--resume", {"is given on rank 1 on host ", " and not given on rank 0"});
  // The file itself, where it differs.
  const std::string text = read_file(scene.disks[1] / "config.textproto");
  write_file(scene.disks[1] / "config.textproto", text + "checkpoint { every: 7 }\n");
  expect({}, "config.textproto:10:14", {"checkpoint.every is 7 on rank 1"});
  fs::remove(scene.disks[1] / "config.textproto");
  expect({}, "config.textproto", {"cannot be read"});
}

TEST(Inputs, TextIsGeneratedFromOneModel) {
  TwoDisks scene;
  const std::vector<std::string> both{"generate", "--model",          "model", "--prompt",
                                      "a",        "--max-new-tokens", "2"};
  expect_one_error(scene.start(both, {"--seed", "2"}), 2, "--seed",
                   {"is 2 on rank 1", " and 0 on rank 0"});
}

}  // namespace
}  // namespace lorashard::test
