// Files: read-only maps, checked writes, and directories that appear in one rename. Every error is
// an Error naming the path and the reason the system gave.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "configs/error.h"

namespace lorashard {

namespace fs = std::filesystem;

// What distinguishes one state of a file from another without reading it.
struct FileIdentity {
  uint64_t bytes = 0, inode = 0, device = 0;
  int64_t modified_ns = 0;
  int64_t changed_ns =
      0;  // of content, name or mode: what copies with an old time stamp do not hide
  bool operator==(const FileIdentity&) const = default;
};
// Of the file that `path` names now; all zero if there is none.
FileIdentity identify_file(const fs::path& path);

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
  // As it was when it was mapped.
  const FileIdentity& identity() const { return identity_; }
  // Maps the pages of [begin, end) in one call, which costs less than a fault for each few of them.
  void populate(uint64_t begin, uint64_t end) const;
  // Gives the pages of [begin, end) back to the system; they return when touched.
  void release(uint64_t begin, uint64_t end) const;

 private:
  fs::path path_;
  const char* data_ = nullptr;
  uint64_t size_ = 0;
  FileIdentity identity_;
};

// The whole of a small file. Input errors (status 2) unless `status` says otherwise.
std::string read_text(const fs::path& path);

// SHA-256, piece by piece.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;
  void update(const void* data, uint64_t bytes);
  void update(std::string_view text) { update(text.data(), text.size()); }
  // The 32 bytes of the digest; the object starts anew.
  std::array<unsigned char, 32> finish();
  std::string finish_hex();

 private:
  void* context_;
};

// A new file (an existing one is an Error), written through checked calls; close() syncs it to the
// disk. A full disk is an Error with status 3 naming the path. Destroying an unclosed file removes
// it. `hashed` false leaves out the SHA-256, which costs time where the processor has no
// instructions for it.
class OutputFile {
 public:
  explicit OutputFile(const fs::path& path, bool hashed = true);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  void write(const void* data, uint64_t bytes);
  void write(std::string_view text) { write(text.data(), text.size()); }
  void close();
  // SHA-256 of what was written, in hexadecimal. REQUIRES: closed, hashed.
  const std::string& sha256() const { return sha256_; }

 private:
  fs::path path_;
  int fd_ = -1;
  std::unique_ptr<Sha256> hash_;
  std::string sha256_;
};

// What the system says of an errno, and what would help where that is known.
std::string reason(int error);

// A name beside `path` that no other process or thread uses: ".NAME.tmp-PID-N".
fs::path temporary_beside(const fs::path& path);

// Writes `path` so that it is either the old or the new file: temporary file, fsync, rename, fsync
// of the directory.
void write_file_atomic(const fs::path& path, std::string_view text);

// Calls fill(temporary directory beside `path`), syncs what it wrote, and renames it to `path`.
// Nothing remains if fill throws. REQUIRES: path does not exist (Error, status 2).
void create_directory_atomic(const fs::path& path,
                             const std::function<void(const fs::path&)>& fill);

// Calls fill(temporary directory beside the existing directory `dir`), syncs what it wrote, and
// moves each file into `dir`, over one of its name; others stay. Each file is the old or the new
// one at any moment. Nothing is changed if fill throws.
void replace_files(const fs::path& dir, const std::function<void(const fs::path&)>& fill);

// Throws `error` with every `from` in its text replaced by `to`: the name that the user knows.
[[noreturn]] void rethrow_renamed(const Error& error, const fs::path& from, const fs::path& to);

// SHA-256 in hexadecimal.
std::string sha256_hex(const void* data, uint64_t bytes);
std::string sha256_file(const fs::path& path);
std::string to_hex(const unsigned char* data, size_t bytes);

}  // namespace lorashard
