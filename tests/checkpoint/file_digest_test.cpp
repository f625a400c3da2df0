#include "checkpoint/file_digest.h"

#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <thread>

#include "checkpoint/base_digest.h"
#include "configs/error.h"
#include "tests/support/temp_dir.h"

namespace lorashard::test {
namespace {

TEST(FileDigest, IsRememberedUntilTheFileChanges) {
  const TempDir dir;
  ::setenv("XDG_CACHE_HOME", (dir / "cache").c_str(), 1);
  const fs::path file = dir / "data.jsonl";
  std::ofstream(file) << "one\n";
  std::this_thread::sleep_for(std::chrono::milliseconds(40));  // younger files are not remembered
  EXPECT_EQ(cached_file_digest(file), sha256_hex("one\n", 4));

  // Remembered: what the cache says now is what comes back.
  const Digest mark{1, 2, 3};
  remember_digests(file, identify_file(file), {"file"}, {mark});
  EXPECT_EQ(cached_file_digest(file), to_hex(mark.data(), mark.size()));

  std::ofstream(file) << "two\n";  // as long as before
  EXPECT_EQ(cached_file_digest(file), sha256_hex("two\n", 4));
  std::filesystem::remove(file);
  EXPECT_THROW(cached_file_digest(file), Error);
}

}  // namespace
}  // namespace lorashard::test
