// A folder that one job at a time works in.
#pragma once

#include <string>

#include "checkpoint/file_io.h"

namespace lorashard {

// Holds FOLDER/.lock from construction to the end of the process or its own, whichever comes first:
// the system lets go of it when the process dies in any way, so nothing is left to clear up after a
// crash. The file says who holds it, and is removed at the end.
//
// flock() is used: Linux has it on local file systems and turns it into a lock of the server's on
// NFS, which hosts then see of each other. Two threads that open the folder are distinct holders
// too.
class FolderLock {
 public:
  // Error (status 2) at `where` that names the job which holds the folder: host, process and since
  // when. Creates nothing but the file. REQUIRES: the folder exists.
  FolderLock(const fs::path& folder, const std::string& where);
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

  // What a user should know, or empty: that this file system cannot lock, or that the file was left
  // by a job on another host, of which this one may not hear.
  const std::string& note() const { return note_; }

 private:
  fs::path path_;
  int fd_ = -1;
  std::string note_;
};

}  // namespace lorashard
