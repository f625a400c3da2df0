// A directory that is filled beside its final place.
#pragma once

#include <memory>

#include "checkpoint/file_io.h"
#include "configs/signals.h"

namespace lorashard {

// The new directory ".NAME.tmp-PID-N" beside `target` (whose parent exists), removed with all that
// is in it at the end of its life, and where a stop signal ends the process. A killed process
// leaves it behind; the next one with the same target removes what no living process holds, which a
// lock on the directory shows (flock; where a file system has no such locks, leftovers stay).
class TemporaryDirectory {
 public:
  // Error (status 3) naming `target`.
  explicit TemporaryDirectory(const fs::path& target);
  ~TemporaryDirectory();
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  const fs::path& path() const { return path_; }
  // It has been renamed: nothing is to be removed any more.
  void release();

 private:
  fs::path path_;
  int lock_ = -1;
  std::unique_ptr<UndoIfStopped> undo_;
};

}  // namespace lorashard
