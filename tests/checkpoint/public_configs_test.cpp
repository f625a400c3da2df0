// config.json of public models of the families, as published, against what transformers makes
// of them (tests/golden/model_configs).
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "checkpoint/file_io.h"
#include "checkpoint/model_config.h"

namespace lorashard::test {
namespace {

TEST(PublicConfigs, GiveTheModulesAndTheWeightsOfTransformers) {
  const fs::path dir = fs::path(LORASHARD_SOURCE_DIR) / "tests/golden/model_configs";
  const auto expected = nlohmann::json::parse(read_text(dir / "expected.json"));
  std::set<std::string> families;
  int accepted = 0;
  for (const auto& [name, model] : expected.items()) {
    SCOPED_TRACE(name);
    const std::string text = read_text(dir / (name + ".json"));
    std::vector<std::string> notes;
    const ModelConfig config = parse_model_config(text, name, &notes);
    families.insert(config.architecture);
    ++accepted;
    int64_t weights = 0;
    const auto tensors = model_tensors(config);
    for (const TensorSpec& t : tensors) weights += t.rows * t.cols;
    EXPECT_TRUE(notes.empty() || name == "gpt2") << notes[0];  // its dropouts are noted
    EXPECT_EQ(int64_t(tensors.size()), model["tensors"]);
    EXPECT_EQ(weights, model["weights"]);
    const auto linear = linear_modules(config);
    EXPECT_EQ(int64_t(linear.size()), model["linear"]);
    EXPECT_EQ(int64_t(linear.size() + other_modules(config).size()), model["modules"]);
  }
  EXPECT_EQ(accepted, 14);
  EXPECT_EQ(families.size(), 6u);
}

}  // namespace
}  // namespace lorashard::test
