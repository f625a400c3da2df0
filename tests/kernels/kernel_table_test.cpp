// KERNELS.md, the table of registers, shared memory and occupancy, keeps up with the kernels.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "tests/support/process.h"
#include "tests/support/temp_dir.h"

namespace lorashard {
namespace {

namespace fs = std::filesystem;

// Runs kernel_table.sh --check of the tree at `root`.
test::Outcome check(const fs::path& root) {
  return test::run({{"bash", (root / "tests/cuda/kernel_table.sh").string(), "--check"}});
}

TEST(KernelTable, IsCurrent) {
  const test::Outcome result = check(LORASHARD_SOURCE_DIR);
  EXPECT_EQ(result.status, 0) << result.err
                              << "run tests/cuda/kernel_table.sh and read what changed";
}

TEST(KernelTable, NoticesCodeButNotComments) {
  const test::TempDir dir;
  for (const char* part : {"kernels/cuda", "tests/cuda"}) {
    fs::create_directories((dir.path() / part).parent_path());
    fs::copy(fs::path(LORASHARD_SOURCE_DIR) / part, dir.path() / part, fs::copy_options::recursive);
  }
  const auto append = [&](const char* file, const char* text) {
    std::ofstream(dir.path() / "kernels/cuda" / file, std::ios::app) << text;
  };
  append("rope.cu", "\n  // only words\n");
  EXPECT_EQ(check(dir.path()).status, 0);
  append("map_rows.h", "int changed;\n");  // included by rope.cu and others, but not by all
  const test::Outcome result = check(dir.path());
  EXPECT_EQ(result.status, 1);
  EXPECT_NE(result.err.find("rope.cu"), std::string::npos) << result.err;
}

}  // namespace
}  // namespace lorashard
