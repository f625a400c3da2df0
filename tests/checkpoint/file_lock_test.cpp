// One job a folder: of any number that ask at once one gets it, and a dead one holds nothing.
#include "checkpoint/file_lock.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <memory>
#include <thread>
#include <vector>

#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"

namespace lorashard::test {
namespace {

TEST(FolderLock, IsHeldByOneAndNamesIt) {
  const TempDir dir;
  {
    const FolderLock held(dir.path(), "x:1:1");
    EXPECT_EQ(held.note(), "");
    expect_error(kExitInput,
                 {"x:1:1: '" + dir.path().string() + "' is in use by process " +
                      std::to_string(::getpid()) + " on host ",
                  " since ", "output.dir"},
                 [&] { FolderLock(dir.path(), "x:1:1"); });
  }
  EXPECT_FALSE(fs::exists(dir / ".lock"));
  EXPECT_EQ(FolderLock(dir.path(), "").note(), "");
}

TEST(FolderLock, OfManyAtOnceOneGetsIt) {
  const TempDir dir;
  for (int round = 0; round < 50; ++round) {
    std::vector<std::unique_ptr<FolderLock>> locks(4);
    std::atomic<int> refused = 0;
    std::vector<std::thread> threads;
    for (auto& lock : locks) {
      threads.emplace_back([&] {
        try {
          lock = std::make_unique<FolderLock>(dir.path(), "");
        } catch (const Error&) {
          ++refused;
        }
      });
    }
    for (std::thread& t : threads) t.join();
    EXPECT_EQ(refused, 3);
  }
}

// Holders come and go: never are there two.
TEST(FolderLock, IsHandedOnWithoutAGap) {
  const TempDir dir;
  std::atomic<int> holders = 0, most = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 500; ++i) {
        try {
          const FolderLock lock(dir.path(), "");
          const int now = ++holders;
          if (now > most) most = now;
          --holders;
        } catch (const Error&) {
        }
      }
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(most, 1);
}

TEST(FolderLock, OfAProcessThatDiedIsFree) {
  const TempDir dir;
  const pid_t child = ::fork();
  if (child == 0) {
    const FolderLock lock(dir.path(), "");
    ::_exit(0);  // without a destructor, as when it is killed
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  ASSERT_TRUE(fs::exists(dir / ".lock"));
  EXPECT_EQ(FolderLock(dir.path(), "").note(), "");
  // Left by another host, whose locks may not reach here.
  std::ofstream(dir / ".lock") << "process 12 on host elsewhere since 2026-01-31 12:00:00 UTC\n";
  EXPECT_THAT(FolderLock(dir.path(), "").note(),
              testing::HasSubstr("was left by process 12 on host elsewhere since"));
}

}  // namespace
}  // namespace lorashard::test
