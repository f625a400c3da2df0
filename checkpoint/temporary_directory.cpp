#include "checkpoint/temporary_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <vector>

#include "configs/error.h"

namespace lorashard {
namespace {

// The directory, locked; -1 where it is gone, another process holds it, or locks are not to be had.
int lock_directory(const fs::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (fd >= 0 && ::flock(fd, LOCK_EX | LOCK_NB) == 0) return fd;
  if (fd >= 0) ::close(fd);
  return -1;
}

void remove_leftovers(const fs::path& target) {
  const std::string begin = "." + target.filename().string() + ".tmp-";
  std::vector<fs::path> leftovers;
  std::error_code ec;
  const fs::path parent = target.has_parent_path() ? target.parent_path() : fs::path(".");
  for (const auto& entry : fs::directory_iterator(parent, ec))
    if (entry.path().filename().string().starts_with(begin)) leftovers.push_back(entry.path());
  for (const fs::path& path : leftovers) {
    const int lock = lock_directory(path);
    if (lock < 0) continue;
    fs::remove_all(path, ec);
    ::close(lock);
  }
}

}  // namespace

TemporaryDirectory::TemporaryDirectory(const fs::path& target) {
  remove_leftovers(target);
  constexpr int kTries = 10;
  for (int i = 0; i < kTries; ++i) {
    path_ = temporary_beside(target);
    if (::mkdir(path_.c_str(), 0755) != 0) {
      fail_run(target.string(), "cannot be created: " + std::generic_category().message(errno));
    }
    lock_ = lock_directory(path_);
    // Between the two calls another process may have taken it for a leftover.
    if (fs::exists(path_)) break;
    if (lock_ >= 0) ::close(lock_);
  }
  // The process goes on writing until it ends: once may not be enough.
  undo_ = std::make_unique<UndoIfStopped>([path = path_] {
    constexpr int kMost = 100;
    std::error_code ec;
    for (int i = 0; i < kMost && fs::exists(path, ec); ++i) fs::remove_all(path, ec);
  });
}

TemporaryDirectory::~TemporaryDirectory() {
  undo_.reset();
  std::error_code ec;
  if (!path_.empty()) fs::remove_all(path_, ec);
  if (lock_ >= 0) ::close(lock_);
}

void TemporaryDirectory::release() {
  undo_.reset();
  path_.clear();
}

}  // namespace lorashard
