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

TEST(Layering, FoldersIncludeOnlyWhatStandsBeforeThem) {
  const std::string include = "#include \"";
  int seen = 0;
  for (size_t place = 0; place < kOrder.size(); ++place) {
    for (const auto& entry :
         fs::recursive_directory_iterator(fs::path(LORASHARD_SOURCE_DIR) / kOrder[place])) {
      const std::string extension = entry.path().extension();
      if (extension != ".h" && extension != ".cpp" && extension != ".cu" && extension != ".cuh") {
        continue;
      }
      std::ifstream file(entry.path());
      for (std::string line; std::getline(file, line);) {
        if (!line.starts_with(include)) continue;
        const std::string path = line.substr(include.size());
        const std::string folder = path.substr(0, path.find('/'));
        const auto found = std::find(kOrder.begin(), kOrder.end(), folder);
        EXPECT_NE(found, kOrder.end()) << entry.path() << ": " << line;
        EXPECT_LE(size_t(found - kOrder.begin()), place) << entry.path() << ": " << line;
        ++seen;
      }
    }
  }
  EXPECT_GT(seen, 100);
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
