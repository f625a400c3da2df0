// Files: read-only maps, checked writes, and directories that appear in one rename. Every error is
// an Error naming the path and the reason the system gave.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

namespace lorashard {

namespace fs = std::filesystem;

// A file mapped read-only and shared, so that ranks of one host hold it once.
class MappedFile {
 public:
  explicit MappedFile(const fs::path& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;

  const char* data() const { return data_; }
  uint64_t size() const { return size_; }
  const fs::path& path() const { return path_; }
  // Gives the pages of [begin, end) back to the system; they return when touched.
  void release(uint64_t begin, uint64_t end) const;

 private:
  fs::path path_;
  const char* data_ = nullptr;
  uint64_t size_ = 0;
};

// The whole of a small file. Input errors (status 2) unless `status` says otherwise.
std::string read_text(const fs::path& path);

// A new file, written through checked calls; close() syncs it to the disk. A full disk is an Error
// with status 3 naming the path. Destroying an unclosed file removes it.
class OutputFile {
 public:
  explicit OutputFile(const fs::path& path);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  void write(const void* data, uint64_t bytes);
  void write(std::string_view text) { write(text.data(), text.size()); }
  void close();
  // SHA-256 of what was written, in hexadecimal. REQUIRES: closed.
  const std::string& sha256() const { return sha256_; }

 private:
  struct Hash;
  fs::path path_;
  int fd_ = -1;
  Hash* hash_;
  std::string sha256_;
};

// Writes `path` so that it is either the old or the new file: temporary file, fsync, rename, fsync
// of the directory.
void write_file_atomic(const fs::path& path, std::string_view text);

// Calls fill(temporary directory beside `path`), syncs what it wrote, and renames it to `path`.
// Nothing remains if fill throws. REQUIRES: path does not exist (Error, status 2).
void create_directory_atomic(const fs::path& path,
                             const std::function<void(const fs::path&)>& fill);

// SHA-256 in hexadecimal.
std::string sha256_hex(const void* data, uint64_t bytes);
std::string sha256_file(const fs::path& path);

}  // namespace lorashard
