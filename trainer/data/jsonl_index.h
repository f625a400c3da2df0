// Where the lines of a JSONL file begin. The file is scanned once in blocks and never held: every
// 8th line's offset is kept, one byte a line.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/file_io.h"

namespace lorashard {

class JsonlIndex {
 public:
  // Scans the file. Lines end with LF or CR LF, the last one may lack its end; lines of nothing but
  // white space are skipped, and so is a UTF-8 byte order mark at the start. Errors (status 2): not
  // a readable regular file; a line over 256 MiB.
  explicit JsonlIndex(const std::string& path);
  ~JsonlIndex();
  JsonlIndex(JsonlIndex&& other) noexcept;
  JsonlIndex(const JsonlIndex&) = delete;
  JsonlIndex& operator=(const JsonlIndex&) = delete;

  const std::string& path() const { return path_; }
  int64_t size() const { return size_; }  // lines that are not blank
  uint64_t file_bytes() const { return identity_.bytes; }
  const FileIdentity& identity() const { return identity_; }  // of the file when it was opened

  // Line i without its end. May be called from several threads. REQUIRES: 0 <= i < size().
  std::string line(int64_t i) const;
  // "FILE:LINE" of line i, blank lines counted, from 1; reads the file up to there.
  std::string where(int64_t i) const;

 private:
  struct Found {
    uint64_t offset;
    std::string text;
  };
  Found find(int64_t i) const;
  size_t read(uint64_t offset, char* to, size_t bytes) const;

  std::string path_;
  int file_ = -1;
  FileIdentity identity_;
  int64_t size_ = 0;
  std::vector<uint64_t> starts_;  // of every 8th line that is not blank
};

}  // namespace lorashard
