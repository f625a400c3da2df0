#include "checkpoint/file_io.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "checkpoint/temporary_directory.h"
#include "configs/error.h"

namespace lorashard {
namespace {

// A file descriptor that closes itself.
struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

// Opens for reading; only regular files (and what symbolic links to them name) are read.
int open_regular(const fs::path& path, struct stat& st) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) fail_input(path.string(), "cannot be read: " + reason(errno));
  if (::fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
    ::close(fd);
    fail_input(path.string(), "is not a regular file");
  }
  return fd;
}

FileIdentity identity_of(const struct stat& st) {
  const auto ns = [](const timespec& t) { return t.tv_sec * 1'000'000'000 + t.tv_nsec; };
  return {static_cast<uint64_t>(st.st_size), st.st_ino, st.st_dev, ns(st.st_mtim), ns(st.st_ctim)};
}

void sync_path(const fs::path& path, int flags) {
  const Descriptor d{::open(path.c_str(), flags | O_CLOEXEC)};
  if (d.fd < 0) fail_run(path.string(), "cannot be opened for syncing: " + reason(errno));
  // File systems without fsync on directories answer EINVAL; there is nothing better to do there.
  if (::fsync(d.fd) != 0 && errno != EINVAL && errno != EROFS)
    fail_run(path.string(), "cannot be synced to the disk: " + reason(errno));
}

fs::path parent_of(const fs::path& path) {
  return path.has_parent_path() ? path.parent_path() : fs::path(".");
}

// Calls fill on a new directory beside `target` and syncs what it wrote. Errors name `target`.
void fill_temporary(const fs::path& temporary, const fs::path& target,
                    const std::function<void(const fs::path&)>& fill) {
  try {
    fill(temporary);
    std::vector<fs::path> directories{temporary};
    for (const auto& entry : fs::recursive_directory_iterator(temporary)) {
      if (entry.is_symlink()) continue;
      if (entry.is_directory()) {
        directories.push_back(entry.path());
      } else {
        sync_path(entry.path(), O_RDONLY);
      }
    }
    for (auto d = directories.rbegin(); d != directories.rend(); ++d)
      sync_path(*d, O_RDONLY | O_DIRECTORY);
  } catch (const Error& e) {
    rethrow_renamed(e, temporary, target);
  }
}

constexpr uint64_t kFaultAround = 64 * 1024;  // Linux maps the cached pages around a fault

}  // namespace

FileIdentity identify_file(const fs::path& path) {
  struct stat st {};
  if (::stat(path.c_str(), &st) != 0) return {};
  return identity_of(st);
}

MappedFile::MappedFile(const fs::path& path) : path_(path) {
  struct stat st {};
  const Descriptor d{open_regular(path, st)};
  size_ = static_cast<uint64_t>(st.st_size);
  identity_ = identity_of(st);
  if (size_ == 0) return;
  void* map = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, d.fd, 0);
  if (map == MAP_FAILED) fail_input(path.string(), "cannot be mapped: " + reason(errno));
  data_ = static_cast<const char*>(map);
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(const_cast<char*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      identity_(other.identity_) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(identity_, other.identity_);
  return *this;
}

void MappedFile::populate(uint64_t begin, uint64_t end) const {
#ifdef MADV_POPULATE_READ  // Linux 5.14; without it the pages come by faults
  begin -= begin % kFaultAround;
  if (begin < end) ::madvise(const_cast<char*>(data_) + begin, end - begin, MADV_POPULATE_READ);
#else
  (void)begin;
  (void)end;
#endif
}

void MappedFile::release(uint64_t begin, uint64_t end) const {
  // Rounded outward to what a fault brought in; the pages are shared and clean, so others that are
  // still in use only fault again.
  begin -= begin % kFaultAround;
  end = std::min(size_, (end + kFaultAround - 1) / kFaultAround * kFaultAround);
  if (begin < end) ::madvise(const_cast<char*>(data_) + begin, end - begin, MADV_DONTNEED);
}

std::string read_text(const fs::path& path) {
  struct stat st {};
  const Descriptor d{open_regular(path, st)};
  std::string text(static_cast<size_t>(st.st_size), '\0');
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = ::read(d.fd, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_input(path.string(), "cannot be read: " + reason(errno));
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  text.resize(done);
  return text;
}

Sha256::Sha256() : context_(EVP_MD_CTX_new()) {
  EVP_DigestInit_ex(static_cast<EVP_MD_CTX*>(context_), EVP_sha256(), nullptr);
}
Sha256::~Sha256() { EVP_MD_CTX_free(static_cast<EVP_MD_CTX*>(context_)); }
void Sha256::update(const void* data, uint64_t bytes) {
  EVP_DigestUpdate(static_cast<EVP_MD_CTX*>(context_), data, bytes);
}
std::array<unsigned char, 32> Sha256::finish() {
  std::array<unsigned char, 32> digest{};
  EVP_DigestFinal_ex(static_cast<EVP_MD_CTX*>(context_), digest.data(), nullptr);
  EVP_DigestInit_ex(static_cast<EVP_MD_CTX*>(context_), EVP_sha256(), nullptr);
  return digest;
}
std::string Sha256::finish_hex() {
  const auto digest = finish();
  return to_hex(digest.data(), digest.size());
}

OutputFile::OutputFile(const fs::path& path, bool hashed) : path_(path) {
  fd_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd_ < 0) fail_run(path.string(), "cannot be created: " + reason(errno));
  if (hashed) hash_ = std::make_unique<Sha256>();
}

OutputFile::~OutputFile() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(path_.c_str());
}

void OutputFile::write(const void* data, uint64_t bytes) {
  // Large blocks are hashed while the system copies them.
  std::thread hasher;
  if (hash_ && bytes >= (4u << 20)) {
    hasher = std::thread([&] { hash_->update(data, bytes); });
  } else if (hash_) {
    hash_->update(data, bytes);
  }
  int error = 0;
  for (uint64_t done = 0; done < bytes && error == 0;) {
    const uint64_t piece = std::min<uint64_t>(bytes - done, 1u << 30);
    const ssize_t n = ::write(fd_, static_cast<const char*>(data) + done, piece);
    if (n >= 0) {
      done += static_cast<uint64_t>(n);
    } else if (errno != EINTR) {
      error = errno;
    }
  }
  if (hasher.joinable()) hasher.join();
  if (error != 0) fail_run(path_.string(), "cannot be written: " + reason(error));
}

void OutputFile::close() {
  if (::fsync(fd_) != 0 && errno != EINVAL)
    fail_run(path_.string(), "cannot be synced to the disk: " + reason(errno));
  const int fd = std::exchange(fd_, -1);
  if (::close(fd) != 0) {
    const int error = errno;
    ::unlink(path_.c_str());
    fail_run(path_.string(), "cannot be closed: " + reason(error));
  }
  if (hash_) sha256_ = hash_->finish_hex();
}

std::string reason(int error) {
  std::string text = std::generic_category().message(error);
  if (error == ENOSPC || error == EDQUOT) text += "; free space there";
  if (error == EFBIG) text += "; raise the limit on file sizes (ulimit -f)";
  return text;
}

fs::path temporary_beside(const fs::path& path) {
  static std::atomic<unsigned> counter{0};
  std::string name = ".";
  name.append(path.filename().string()).append(".tmp-").append(std::to_string(::getpid()));
  return parent_of(path) / name.append("-").append(std::to_string(counter++));
}

void write_file_atomic(const fs::path& path, std::string_view text) {
  const fs::path temporary = temporary_beside(path);
  try {
    OutputFile out(temporary, false);
    out.write(text);
    out.close();
  } catch (const Error& e) {
    rethrow_renamed(e, temporary, path);
  }
  if (::rename(temporary.c_str(), path.c_str()) != 0) {
    const int error = errno;
    ::unlink(temporary.c_str());
    fail_run(path.string(), "cannot be replaced: " + reason(error));
  }
  sync_path(parent_of(path), O_RDONLY | O_DIRECTORY);
}

void create_directory_atomic(const fs::path& path,
                             const std::function<void(const fs::path&)>& fill) {
  fs::path target = path;
  if (!target.has_filename()) target = target.parent_path();  // "out/"
  const auto refuse_existing = [&] {
    fail_input(target.string(), "exists already; name a directory that does not exist yet");
  };
  std::error_code ec;
  if (fs::exists(fs::symlink_status(target, ec))) refuse_existing();
  fs::create_directories(parent_of(target), ec);
  TemporaryDirectory temporary(target);
  fill_temporary(temporary.path(), target, fill);
  // Plain rename would replace an empty directory that appeared meanwhile.
  const fs::path from = temporary.path();
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, target.c_str(), RENAME_NOREPLACE) != 0) {
    if (errno == EEXIST) refuse_existing();
    if ((errno != EINVAL && errno != ENOSYS) || fs::exists(target) ||
        ::rename(from.c_str(), target.c_str()) != 0)
      fail_run(target.string(), "cannot be created: " + reason(errno));
  }
  temporary.release();
  sync_path(parent_of(target), O_RDONLY | O_DIRECTORY);
}

void replace_files(const fs::path& dir, const std::function<void(const fs::path&)>& fill) {
  const TemporaryDirectory temporary(dir);
  fill_temporary(temporary.path(), dir, fill);
  std::error_code ec;
  for (const auto& entry : fs::directory_iterator(temporary.path())) {
    fs::rename(entry.path(), dir / entry.path().filename(), ec);
    if (ec) break;
  }
  if (ec) fail_run(dir.string(), "a file in it cannot be replaced: " + ec.message());
  sync_path(dir, O_RDONLY | O_DIRECTORY);
}

void rethrow_renamed(const Error& error, const fs::path& from, const fs::path& to) {
  std::string what = error.what();
  const std::string old_name = from.string(), new_name = to.string();
  for (size_t at = 0; (at = what.find(old_name, at)) != std::string::npos; at += new_name.size())
    what.replace(at, old_name.size(), new_name);
  Error renamed(error.exit_status, "", what);
  renamed.on_all_ranks = error.on_all_ranks;
  throw renamed;
}

std::string to_hex(const unsigned char* data, size_t bytes) {
  static const char digits[] = "0123456789abcdef";
  std::string hex(2 * bytes, '0');
  for (size_t i = 0; i < bytes; ++i) {
    hex[2 * i] = digits[data[i] >> 4];
    hex[2 * i + 1] = digits[data[i] & 15];
  }
  return hex;
}

std::string sha256_hex(const void* data, uint64_t bytes) {
  Sha256 hash;
  hash.update(data, bytes);
  return hash.finish_hex();
}

std::string sha256_file(const fs::path& path) {
  const MappedFile file(path);
  Sha256 hash;
  constexpr uint64_t kPiece = 16u << 20;
  for (uint64_t at = 0; at < file.size(); at += kPiece) {
    const uint64_t end = std::min(file.size(), at + kPiece);
    hash.update(file.data() + at, end - at);
    file.release(at, end);
  }
  return hash.finish_hex();
}

}  // namespace lorashard
