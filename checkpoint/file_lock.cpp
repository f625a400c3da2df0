#include "checkpoint/file_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>
#include <system_error>

namespace lorashard {
namespace {

std::string host_name() {
  char name[256] = "";
  ::gethostname(name, sizeof name - 1);
  return name;
}

// "process 123 on host node1 since 2026-01-31 12:00:00 UTC"
std::string describe_this_job() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  ::gmtime_r(&now, &utc);
  char since[64];
  std::strftime(since, sizeof since, "%Y-%m-%d %H:%M:%S UTC", &utc);
  return "process " + std::to_string(::getpid()) + " on host " + host_name() + " since " + since;
}

// The first line of what the holder wrote; it may not have come to writing yet.
std::string read_holder(int fd) {
  char text[512];
  const ssize_t n = ::pread(fd, text, sizeof text, 0);
  const std::string all(text, n > 0 ? size_t(n) : 0);
  return all.substr(0, all.find('\n'));
}

// `fd` is the file that `path` names: the holder before may have removed it meanwhile.
bool is_file_at(int fd, const fs::path& path) {
  struct stat opened {
  }, named{};
  return ::fstat(fd, &opened) == 0 && ::stat(path.c_str(), &named) == 0 &&
         opened.st_ino == named.st_ino && opened.st_dev == named.st_dev;
}

}  // namespace

FolderLock::FolderLock(const fs::path& folder, const std::string& where) : path_(folder / ".lock") {
  for (;;) {
    fd_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd_ < 0) fail_run(path_.string(), "cannot be created: " + reason(errno));
    int locked;
    while ((locked = ::flock(fd_, LOCK_EX | LOCK_NB)) != 0 && errno == EINTR) {
    }
    const int error = locked == 0 ? 0 : errno;
    if (error == EWOULDBLOCK) {
      const std::string holder = read_holder(fd_);
      ::close(fd_);
      fail_input(where, "'" + folder.string() + "' is in use by " +
                            (holder.empty() ? "another job" : holder) +
                            "; wait until that job ends or stop it, or choose another output.dir");
    }
    if (error != 0) {
      note_ = folder.string() + ": this file system cannot lock files (" + reason(error) +
              "); take care that no second job works in this folder";
      break;
    }
    if (is_file_at(fd_, path_)) break;
    ::close(fd_);
  }
  const std::string before = read_holder(fd_);
  if (note_.empty() && !before.empty() &&
      before.find(" on host " + host_name() + " ") == std::string::npos) {
    note_ =
        path_.string() + " was left by " + before + "; if that job still runs, stop one of the two";
  }
  const std::string text = describe_this_job() + "\n";
  if (::ftruncate(fd_, 0) != 0 ||
      ::pwrite(fd_, text.data(), text.size(), 0) != ssize_t(text.size())) {
    const int write_error = errno;
    ::unlink(path_.c_str());
    ::close(fd_);
    fail_run(path_.string(), "cannot be written: " + reason(write_error));
  }
}

FolderLock::~FolderLock() {
  // Removed while it is still held: who opened it meanwhile looks whether it is still there.
  ::unlink(path_.c_str());
  ::close(fd_);
}

}  // namespace lorashard
