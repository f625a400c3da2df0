// The layout is the architecture: a folder includes only what stands before it.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;
const std::vector<std::string> kOrder = {"configs",    "kernels", "parallel",
                                         "checkpoint", "trainer", "launch"};
const std::vector<std::string> kTrainerOrder = {"data", "model", "run", "cost"};

// That each of `order`, folders of `root`, includes of these only itself and those before it; what
// else is included must be `others`' (true: it may).
void expect_order(const fs::path& root, const std::vector<std::string>& order,
                  const std::string& prefix, bool others) {
  const std::string include = "#include \"" + prefix;
  int seen = 0;
  for (size_t place = 0; place < order.size(); ++place) {
    for (const auto& entry : fs::recursive_directory_iterator(root / order[place])) {
      const std::string extension = entry.path().extension();
      if (extension != ".h" && extension != ".cpp" && extension != ".cu" && extension != ".cuh") {
        continue;
      }
      std::ifstream file(entry.path());
      for (std::string line; std::getline(file, line);) {
        if (!line.starts_with(include)) {
          EXPECT_TRUE(others || !line.starts_with("#include \"")) << entry.path() << ": " << line;
          continue;
        }
        const std::string path = line.substr(include.size());
        const auto found = std::find(order.begin(), order.end(), path.substr(0, path.find('/')));
        EXPECT_NE(found, order.end()) << entry.path() << ": " << line;
        EXPECT_LE(size_t(found - order.begin()), place) << entry.path() << ": " << line;
        ++seen;
      }
    }
  }
  EXPECT_GT(seen, 50);
}

TEST(Layering, FoldersIncludeOnlyWhatStandsBeforeThem) {
  expect_order(LORASHARD_SOURCE_DIR, kOrder, "", false);
}

TEST(Layering, FoldersOfTheTrainerIncludeOnlyWhatStandsBeforeThem) {
  const fs::path trainer = fs::path(LORASHARD_SOURCE_DIR) / "trainer";
  expect_order(trainer, kTrainerOrder, "trainer/", true);
  for (const auto& entry : fs::directory_iterator(trainer)) {
    const std::string name = entry.path().filename();
    if (fs::is_empty(entry.path())) continue;  // what a move leaves behind
    EXPECT_TRUE(name == "CMakeLists.txt" ||
                std::find(kTrainerOrder.begin(), kTrainerOrder.end(), name) != kTrainerOrder.end())
        << name;
  }
}

TEST(Layering, NothingElseLiesAtTheTop) {
  std::set<std::string> allowed(kOrder.begin(), kOrder.end());
  allowed.insert({"tests", "CMakeLists.txt", "CMakePresets.json", "README.md", "CONTRIBUTING.md",
                  "LICENSE", "shared", "runs"});
  for (const auto& entry : fs::directory_iterator(LORASHARD_SOURCE_DIR)) {
    const std::string name = entry.path().filename();
    if (name.starts_with(".") || name.starts_with("build")) continue;
    EXPECT_TRUE(allowed.contains(name)) << name;
  }
}

}  // namespace
