#include "checkpoint/temporary_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <string_view>
#include <system_error>
#include <vector>

#include "configs/error.h"

namespace lorashard {
namespace {

// The directory, locked; -1 where it is gone, another process holds it (errno is EWOULDBLOCK then),
// or locks are not to be had.
int lock_directory(const fs::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (fd >= 0 && ::flock(fd, LOCK_EX | LOCK_NB) == 0) return fd;
  const int error = errno;
  if (fd >= 0) ::close(fd);
  errno = error;
  return -1;
}

// "PID-N", as temporary_beside ends its names: a user's ".NAME.tmp-old" is nobody's leftover.
bool is_pid_and_number(std::string_view text) {
  const size_t dash = text.find('-');
  const auto digits = [](std::string_view s) {
    return !s.empty() && s.find_first_not_of("0123456789") == s.npos;
  };
  return dash != text.npos && digits(text.substr(0, dash)) && digits(text.substr(dash + 1));
}

void remove_leftovers(const fs::path& target) {
  const std::string begin = "." + target.filename().string() + ".tmp-";
  std::vector<fs::path> leftovers;
  std::error_code ec;
  const fs::path parent = target.has_parent_path() ? target.parent_path() : fs::path(".");
  for (const auto& entry : fs::directory_iterator(parent, ec)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(begin) && is_pid_and_number(std::string_view(name).substr(begin.size())))
      leftovers.push_back(entry.path());
  }
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
    // Before it exists. The process goes on writing until it ends: once may not be enough.
    undo_ = std::make_unique<UndoIfStopped>([path = path_] {
      constexpr int kMost = 100;
      std::error_code ec;
      for (int i = 0; i < kMost && fs::exists(path, ec); ++i) fs::remove_all(path, ec);
    });
    if (::mkdir(path_.c_str(), 0755) != 0) {
      fail_run(target.string(), "cannot be created: " + reason(errno));
    }
    lock_ = lock_directory(path_);
    // Between the two calls another process may have taken it for a leftover, and be removing it.
    const bool taken = lock_ < 0 && errno == EWOULDBLOCK;
    if (!taken && fs::exists(path_)) break;
    if (lock_ >= 0) ::close(lock_);
  }
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
