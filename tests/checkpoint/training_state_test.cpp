// Checkpoints come back bit for bit, and damage of any kind falls back to the one before.
#include "checkpoint/training_state.h"

#include <gmock/gmock.h>

#include <limits>

#include "tests/checkpoint/adapter_fixtures.h"

namespace lorashard {
namespace {

const char* const kFiles[] = {"adapter_config.json", "adapter_model.safetensors",
                              "trainer_state.safetensors", "manifest.textproto"};

TrainingState some_state(int64_t step) {
  TrainingState s;
  s.counters = {.step = step,
                .sequences_consumed = 8 * step,
                .data_begins = step,
                .sequences = 7,
                .tokens = 100 * step,
                .steps_skipped = 1,
                .seed = 0xfedcba9876543210u,
                .base_digest = std::string(64, 'b'),
                .data_digest = std::string(64, 'd'),
                .config_digest = std::string(64, 'c'),
                .settings = {"data.format: TEXT", "data.eval: \"a \\\"b\\\"\""},
                .changes = {"step 1: train.steps 8 -> 9"}};
  s.adapter = some_adapter(uint32_t(step));
  s.first_moment = s.second_moment = s.adapter;
  for (const auto& t : tensors_of(s.first_moment)) {
    *t.values = some_values(uint32_t(step + 50), t.values->size());
  }
  for (const auto& t : tensors_of(s.second_moment)) {
    *t.values = some_values(uint32_t(step + 60), t.values->size());
    for (float& v : *t.values) v = v * v;
  }
  s.first_moment.modules[0].a[0] = -0.0f;
  s.first_moment.modules[0].a[1] = -std::numeric_limits<float>::denorm_min();
  s.second_moment.modules[0].a[0] = std::numeric_limits<float>::max();
  return s;
}

void expect_same(const TrainingState& a, const TrainingState& b) {
  EXPECT_TRUE(a.counters == b.counters);
  lorashard::expect_same(a.adapter, b.adapter);
  for (const auto moment : {&TrainingState::first_moment, &TrainingState::second_moment}) {
    const auto x = tensors_of(a.*moment), y = tensors_of(b.*moment);
    ASSERT_EQ(x.size(), y.size());
    for (size_t i = 0; i < x.size(); ++i) EXPECT_TRUE(same_bits(*x[i].values, *y[i].values));
  }
}

class Checkpoints : public testing::Test {
 protected:
  void save(int64_t step, int64_t keep_last = 0) {
    EXPECT_TRUE(save_checkpoint(run.path(), some_state(step), keep_last).empty());
  }
  std::optional<LoadedCheckpoint> load() {
    return load_newest_checkpoint(run.path(), golden_modules());
  }
  // What is in the folder of checkpoints.
  std::vector<std::string> names() {
    std::vector<std::string> n;
    for (const auto& e : fs::directory_iterator(run / "checkpoints"))
      n.push_back(e.path().filename().string());
    std::sort(n.begin(), n.end());
    return n;
  }
  fs::path file(int64_t step, const std::string& name) {
    return run / "checkpoints" / ("step-0000" + std::to_string(step)) / name;
  }
  // Step 50 is used, and one note says what is wrong with step 99.
  void expect_fallback(const std::string& part) {
    const auto loaded = load();
    ASSERT_TRUE(loaded);
    EXPECT_EQ(loaded->state.counters.step, 50);
    ASSERT_EQ(loaded->notes.size(), 1u);
    EXPECT_EQ(loaded->notes[0].find("checkpoints/step-000099: " + part), 0u) << loaded->notes[0];
    EXPECT_NE(loaded->notes[0].find("; using step-000050"), std::string::npos) << loaded->notes[0];
  }
  test::TempDir run;
};

TEST_F(Checkpoints, RoundTripKeepsEveryBit) {
  EXPECT_FALSE(load());  // a run without checkpoints
  save(50);
  const auto loaded = load();
  ASSERT_TRUE(loaded);
  expect_same(loaded->state, some_state(50));
  EXPECT_EQ(loaded->path, run / "checkpoints" / "step-000050");
  EXPECT_TRUE(loaded->notes.empty());
  EXPECT_EQ(names(), (std::vector<std::string>{"latest", "step-000050"}));
  EXPECT_EQ(slurp(run / "checkpoints" / "latest"), "step-000050\n");
  // The adapter opens by itself.
  lorashard::expect_same(read_adapter(loaded->path, golden_modules()), some_adapter(50));
}

TEST_F(Checkpoints, NewestIsUsedAndOldOnesGo) {
  for (const int64_t step : {10, 20, 30, 40}) save(step, 2);
  EXPECT_EQ(names(), (std::vector<std::string>{"latest", "step-000030", "step-000040"}));
  EXPECT_EQ(load()->state.counters.step, 40);
  save(50, 1);
  EXPECT_EQ(names(), (std::vector<std::string>{"latest", "step-000050"}));
  save(60, 0);  // keeps all
  EXPECT_EQ(names().size(), 3u);
}

TEST_F(Checkpoints, TruncatedFilesFallBack) {
  save(50);
  save(99);
  for (const char* name : kFiles) {
    const std::string bytes = slurp(file(99, name));
    for (size_t i = 0; i < 12; ++i) {
      const size_t size = i < 11 ? bytes.size() * i / 11 : bytes.size() - 1;
      spill(file(99, name), bytes.substr(0, size));
      expect_fallback(name);
    }
    spill(file(99, name), bytes + "\n");  // grown
    expect_fallback(name);
    spill(file(99, name), bytes);
  }
  EXPECT_EQ(load()->state.counters.step, 99);
}

TEST_F(Checkpoints, EveryFlippedBitIsFound) {
  save(50);
  save(99);
  for (const char* name : kFiles) {
    const std::string bytes = slurp(file(99, name));
    const size_t stride = std::max<size_t>(1, bytes.size() / 150);
    for (size_t at = 0; at < bytes.size(); at += stride) {
      std::string flipped = bytes;
      flipped[at] = char(flipped[at] ^ (1 << (at % 8)));
      spill(file(99, name), flipped);
      SCOPED_TRACE(std::string(name) + " byte " + std::to_string(at));
      expect_fallback(name);
    }
    spill(file(99, name), bytes);
  }
  EXPECT_EQ(load()->state.counters.step, 99);
}

TEST_F(Checkpoints, FilesOfUsersStay) {
  save(50);
  spill(file(50, "README.md"), "mine");
  spill(file(50, ".DS_Store"), "x");
  EXPECT_EQ(load()->state.counters.step, 50);
  EXPECT_THAT(load()->notes, testing::IsEmpty());
  EXPECT_NO_THROW(inspect_checkpoint(run / "checkpoints/step-000050"));
  // A checkpoint that is written again keeps them, and one that is due to go stays for them.
  spill(file(50, "manifest.textproto"), "damaged");
  save(50);
  EXPECT_EQ(load()->state.counters.step, 50);
  EXPECT_EQ(slurp(file(50, "README.md")), "mine");
  save(60);
  const auto notes = save_checkpoint(run.path(), some_state(70), 2);
  EXPECT_THAT(notes, testing::ElementsAre(testing::HasSubstr("README.md")));
  save(80, 2);
  EXPECT_FALSE(fs::exists(file(60, "manifest.textproto")));
  EXPECT_EQ(slurp(file(50, "README.md")), "mine");
}

TEST_F(Checkpoints, InventoryIsComplete) {
  save(50);
  save(99);
  for (const char* name : kFiles) {
    const std::string bytes = slurp(file(99, name));
    fs::remove(file(99, name));
    expect_fallback(name);
    spill(file(99, name), bytes);
  }
  EXPECT_EQ(load()->state.counters.step, 99);
  // A whole checkpoint under another number.
  fs::rename(run / "checkpoints" / "step-000099", run / "checkpoints" / "step-000100");
  const auto loaded = load();
  EXPECT_EQ(loaded->state.counters.step, 50);
  EXPECT_NE(loaded->notes[0].find("is that of step 99"), std::string::npos) << loaded->notes[0];
}

TEST_F(Checkpoints, ValuesAreChecked) {
  save(50);
  const auto fails = [&](const std::function<void(TrainingState&)>& change,
                         const std::string& part) {
    TrainingState s = some_state(99);
    change(s);
    save_checkpoint(run.path(), s, 0);
    expect_fallback(part);
  };
  fails([](auto& s) { s.adapter.modules[0].a[3] = NAN; }, "adapter_model.safetensors: base_model.");
  fails([](auto& s) { s.first_moment.modules[0].b[0] = INFINITY; },
        "trainer_state.safetensors: model.layers.0.self_attn.q_proj.lora_B.exp_avg: ");
  fails([](auto& s) { s.second_moment.modules[1].a[0] = -1; }, "trainer_state.safetensors: ");
  fails([](auto& s) { s.counters.tokens = -1; },
        "manifest.textproto: holds a counter that cannot be");
  // Of another base.
  fails(
      [](auto& s) {
        AdapterModule& m = s.adapter.modules[0];
        m.in_features /= 2;
        m.a.resize(m.a.size() / 2);
        s.first_moment.modules[0].a.resize(m.a.size());
        s.second_moment.modules[0].a.resize(m.a.size());
      },
      "adapter_model.safetensors: base_model.");
}

TEST_F(Checkpoints, AllDamagedIsAnErrorNamingEach) {
  save(50);
  save(99);
  fs::remove(file(50, "manifest.textproto"));
  fs::remove(file(99, "adapter_config.json"));
  const Caught c = error_of([&] { load(); });
  EXPECT_EQ(c.status, 2);
  for (const char* part :
       {"step-000099: adapter_config.json: is missing", "step-000050: manifest.textproto"})
    EXPECT_NE(c.text.find(part), std::string::npos) << c.text;
}

TEST_F(Checkpoints, LatestMayBeAnything) {
  save(50);
  save(99);
  for (const char* text : {"", "step-000070\n", "garbage\n", "../../etc\n", "step-99\n"}) {
    spill(run / "checkpoints" / "latest", text);
    const auto loaded = load();
    EXPECT_EQ(loaded->state.counters.step, 99);
    ASSERT_EQ(loaded->notes.size(), 1u);
    EXPECT_EQ(loaded->notes[0].find("checkpoints/latest: "), 0u);
  }
  fs::remove(run / "checkpoints" / "latest");
  EXPECT_EQ(load()->state.counters.step, 99);
  // Killed between the rename and `latest`: the newer one is whole, and used.
  spill(run / "checkpoints" / "latest", "step-000050\n");
  EXPECT_EQ(load()->state.counters.step, 99);
  EXPECT_TRUE(load()->notes.empty());
}

TEST_F(Checkpoints, LeftoversOfAKilledRunAreIgnoredAndRemoved) {
  save(50);
  for (const char* name : {".step-000099.tmp-123-0", ".step-000040.removed", ".step-000099.new"}) {
    fs::create_directories(run / "checkpoints" / name);
    spill(run / "checkpoints" / name / "adapter_config.json", "{");
  }
  spill(run / "checkpoints" / ".latest.tmp-123-1", "st");
  fs::create_directories(run / "checkpoints" / "step-abc");  // not ours
  EXPECT_EQ(load()->state.counters.step, 50);
  EXPECT_TRUE(load()->notes.empty());
  save(60);
  EXPECT_EQ(names(),
            (std::vector<std::string>{"latest", "step-000050", "step-000060", "step-abc"}));
}

TEST_F(Checkpoints, ADamagedOneIsReplacedAndNeverCrowdsOutAWholeOne) {
  save(50);
  save(99);
  spill(file(99, "adapter_config.json"), "{}");
  EXPECT_EQ(load()->state.counters.step, 50);
  save(75, 1);  // the damaged 99 is above this step: 75 stays
  EXPECT_EQ(load()->state.counters.step, 75);
  save(99, 1);
  const auto loaded = load();
  expect_same(loaded->state, some_state(99));
  EXPECT_EQ(names(), (std::vector<std::string>{"latest", "step-000099"}));
}

TEST_F(Checkpoints, AFullDiskLeavesTheOldOnes) {
  save(50);
  const auto before = names();
  for (const uint64_t bytes : {0, 100, 700, 3000, 8000}) {
    FileSizeLimit full(bytes);
    const Caught c = error_of([&] { save_checkpoint(run.path(), some_state(99), 1); });
    EXPECT_EQ(c.status, 3);
    EXPECT_NE(c.text.find("step-000099"), std::string::npos) << c.text;
    EXPECT_EQ(names(), before) << bytes;
  }
  expect_same(load()->state, some_state(50));
}

TEST_F(Checkpoints, AFolderThatCannotBeWrittenIsNamed) {
  spill(run / "checkpoints", "a file");
  EXPECT_ERROR(save_checkpoint(run.path(), some_state(1), 0), 3, (run / "checkpoints").string());
}

TEST_F(Checkpoints, InspectVerifiesAndTells) {
  save(50);
  const fs::path dir = run / "checkpoints" / "step-000050";
  EXPECT_TRUE(is_checkpoint(dir));
  EXPECT_FALSE(is_checkpoint(golden("adapter/adapter")));
  std::string all;
  for (const std::string& line : inspect_checkpoint(dir)) all += line + "\n";
  for (const std::string& part :
       {std::string("step 50, 400 sequences, 5000 tokens"), std::string(64, 'b'),
        std::string("seed 18364758544493064720"), sha256_file(dir / "trainer_state.safetensors")})
    EXPECT_NE(all.find(part), std::string::npos) << all;
  spill(dir / "trainer_state.safetensors", "x");
  EXPECT_ERROR(inspect_checkpoint(dir), 2, "trainer_state.safetensors: has 1 bytes");
}

}  // namespace
}  // namespace lorashard
