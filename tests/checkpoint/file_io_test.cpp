#include "checkpoint/file_io.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <fstream>

#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"

namespace lorashard::test {
namespace {

std::vector<std::string> names_in(const fs::path& dir) {
  std::vector<std::string> names;
  for (const auto& e : fs::directory_iterator(dir)) names.push_back(e.path().filename().string());
  return names;
}

TEST(FileIo, WritesHashesAndReadsBack) {
  const TempDir dir;
  OutputFile out(dir / "a");
  std::string text = "abc";
  out.write(text);
  out.close();
  EXPECT_EQ(out.sha256(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(read_text(dir / "a"), text);
  EXPECT_EQ(sha256_file(dir / "a"), out.sha256());

  OutputFile large(dir / "b");  // hashed beside the writing
  text.assign(9 << 20, 'x');
  large.write(text);
  large.write("tail");
  large.close();
  text += "tail";
  EXPECT_EQ(large.sha256(), sha256_hex(text.data(), text.size()));
  EXPECT_EQ(sha256_file(dir / "b"), large.sha256());
}

TEST(FileIo, MapsWholeFilesAndReleasedPagesComeBack) {
  const TempDir dir;
  std::string text(1 << 20, '\0');
  for (size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(i * 31 >> 3);
  std::ofstream(dir / "a", std::ios::binary) << text;
  std::ofstream(dir / "empty", std::ios::binary) << "";
  MappedFile a(dir / "a");
  EXPECT_EQ(std::string(a.data(), a.size()), text);
  a.release(5, 700'000);
  const MappedFile b = std::move(a);
  EXPECT_EQ(std::string(b.data(), b.size()), text);
  EXPECT_EQ(MappedFile(dir / "empty").size(), 0u);
  EXPECT_EQ(b.identity(), identify_file(dir / "a"));
  std::ofstream(dir / "a", std::ios::binary | std::ios::app) << "x";
  EXPECT_FALSE(b.identity() == identify_file(dir / "a"));
  EXPECT_EQ(identify_file(dir / "none"), FileIdentity{});
}

TEST(FileIo, RefusesWhatCannotBeRead) {
  const TempDir dir;
  expect_error(kExitInput, {(dir / "none").string(), "No such file"},
               [&] { MappedFile(dir / "none"); });
  expect_error(kExitInput, {"not a regular file"}, [&] { read_text(dir.path()); });
}

TEST(FileIo, UnclosedFilesVanishAndExistingOnesAreKept) {
  const TempDir dir;
  { OutputFile(dir / "a").write("x"); }
  EXPECT_TRUE(names_in(dir.path()).empty());
  std::ofstream(dir / "b") << "kept";
  expect_error(kExitFailure, {(dir / "b").string(), "exists"}, [&] { OutputFile(dir / "b"); });
  EXPECT_EQ(read_text(dir / "b"), "kept");
  expect_error(kExitFailure, {"none/c", "No such file"},
               [&] { OutputFile(dir.path() / "none" / "c"); });
}

// A file-size limit stands for the full disk: writing fails in the same call with another errno.
TEST(FileIo, FailedWritesAreNamedAndLeaveNothing) {
  const TempDir dir;
  struct rlimit old {};
  getrlimit(RLIMIT_FSIZE, &old);
  struct rlimit low = old;
  low.rlim_cur = 1 << 20;
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  setrlimit(RLIMIT_FSIZE, &low);
  const std::string text(8 << 20, 'x');
  expect_error(kExitFailure, {(dir / "a").string(), "cannot be written"},
               [&] { OutputFile(dir / "a").write(text); });
  expect_error(kExitFailure, {"cannot be written"}, [&] {
    create_directory_atomic(dir / "d", [&](const fs::path& d) { OutputFile(d / "a").write(text); });
  });
  setrlimit(RLIMIT_FSIZE, &old);
  std::signal(SIGXFSZ, handler);
  EXPECT_TRUE(names_in(dir.path()).empty());
}

TEST(FileIo, ReplacesFilesWhole) {
  const TempDir dir;
  write_file_atomic(dir / "a", "one");
  write_file_atomic(dir / "a", "two");
  EXPECT_EQ(read_text(dir / "a"), "two");
  EXPECT_EQ(names_in(dir.path()), std::vector<std::string>{"a"});
  expect_error(kExitFailure, {"none"}, [&] { write_file_atomic(dir.path() / "none" / "a", "x"); });
}

TEST(FileIo, DirectoriesAppearWholeOrNotAtAll) {
  const TempDir dir;
  create_directory_atomic(dir.path() / "sub" / "d", [&](const fs::path& d) {
    EXPECT_FALSE(fs::exists(dir.path() / "sub" / "d"));
    std::ofstream(d / "f") << "x";
    fs::create_directory(d / "inner");
    std::ofstream(d / "inner" / "g") << "y";
  });
  EXPECT_EQ(read_text(dir.path() / "sub" / "d" / "inner" / "g"), "y");
  EXPECT_EQ(names_in(dir / "sub").size(), 1u);

  EXPECT_THROW(create_directory_atomic(dir / "e",
                                       [](const fs::path& d) {
                                         std::ofstream(d / "f") << "x";
                                         throw std::runtime_error("stop");
                                       }),
               std::runtime_error);
  EXPECT_EQ(names_in(dir.path()).size(), 1u);

  fs::create_directory(dir / "there");  // even an empty one is not replaced
  expect_error(kExitInput, {(dir / "there").string(), "exists already"},
               [&] { create_directory_atomic(dir / "there", [](const fs::path&) {}); });
  // One that appears while it is filled is kept, too.
  expect_error(kExitInput, {"exists already"}, [&] {
    create_directory_atomic(dir / "late",
                            [&](const fs::path&) { fs::create_directory(dir / "late"); });
  });
  EXPECT_EQ(names_in(dir.path()).size(), 3u);
}

// What a killed process left goes with the next one; what a living one fills stays.
TEST(FileIo, LeftoversAreRemovedUnlessSomeoneHoldsThem) {
  const TempDir dir;
  for (const char* name :
       {".d.tmp-123-0", ".d.tmp-124-1", ".dd.tmp-123-0", ".d.tmp-backup", ".d.tmp-12-"}) {
    fs::create_directories(dir / name / "inner");
    std::ofstream(dir / name / "inner" / "f") << "x";
  }
  const int held = ::open((dir / ".d.tmp-124-1").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  ASSERT_EQ(::flock(held, LOCK_EX | LOCK_NB), 0);
  create_directory_atomic(dir / "d", [&](const fs::path& filled) {
    EXPECT_FALSE(fs::exists(dir / ".d.tmp-123-0"));
    // Another job with the same target, at this moment.
    expect_error(kExitInput, {"exists already"}, [&] {
      create_directory_atomic(dir / "d", [&](const fs::path&) {
        EXPECT_TRUE(fs::exists(filled));
        fs::create_directory(dir / "d");
      });
    });
    fs::remove(dir / "d");
  });
  ::close(held);
  EXPECT_TRUE(fs::exists(dir / ".d.tmp-124-1" / "inner" / "f"));
  EXPECT_TRUE(fs::exists(dir / ".dd.tmp-123-0"));
  EXPECT_TRUE(fs::exists(dir / ".d.tmp-backup"));
  EXPECT_EQ(names_in(dir.path()).size(), 5u);
}

TEST(FileIo, ReadOnlyPlacesAreNamed) {
  const TempDir dir;
  fs::permissions(dir.path(), fs::perms(0555));
  // Root may write everywhere; it becomes nobody for the test.
  const bool root = ::geteuid() == 0;
  ASSERT_TRUE(!root || ::seteuid(65534) == 0);
  expect_error(kExitFailure, {(dir / "a").string(), "Permission denied"},
               [&] { OutputFile(dir / "a"); });
  expect_error(kExitFailure, {(dir / "d").string(), "Permission denied"},
               [&] { create_directory_atomic(dir / "d", [](const fs::path&) {}); });
  ASSERT_TRUE(!root || ::seteuid(0) == 0);
  fs::permissions(dir.path(), fs::perms::owner_all);
}

}  // namespace
}  // namespace lorashard::test
