#include "trainer/data/jsonl_index.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>

#include "configs/error.h"

namespace lorashard {
namespace {

constexpr int64_t kStride = 8;               // lines per kept offset
constexpr size_t kScanBlock = 1 << 20;       // bytes read at once by scans
constexpr size_t kReadBlock = 16 << 10;      // bytes read at once to find one line
constexpr uint64_t kMaxLine = 256ull << 20;  // a line is held whole; no sequence is that long

bool is_blank(const char* text, size_t size) {
  return std::all_of(text, text + size,
                     [](char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\f'; });
}

// Splits blocks of a file into lines. visit(offset, begin, part, ends): `part` is the next piece of
// the line that begins at `offset`; ends says that the line is complete.
class LineSplitter {
 public:
  explicit LineSplitter(uint64_t offset) : line_(offset), at_(offset) {}
  template <typename Visit>
  bool feed(const char* data, size_t size, Visit visit) {
    for (const char *p = data, *end = data + size; p < end;) {
      const char* newline = static_cast<const char*>(std::memchr(p, '\n', end - p));
      const char* stop = newline ? newline : end;
      if (!visit(line_, p, static_cast<size_t>(stop - p), newline != nullptr)) return false;
      at_ += (stop - p) + (newline != nullptr);
      if (newline) line_ = at_;
      p = newline ? newline + 1 : end;
    }
    return true;
  }

 private:
  uint64_t line_, at_;
};

}  // namespace

JsonlIndex::JsonlIndex(const std::string& path) : path_(path) {
  file_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file_ < 0)
    fail_input(path,
               std::string("cannot be read (") + std::strerror(errno) + "), expected a JSONL file");
  struct stat status;
  if (::fstat(file_, &status) != 0 || !S_ISREG(status.st_mode)) {
    ::close(file_);
    fail_input(path, std::string(S_ISDIR(status.st_mode) ? "is a folder" : "is no regular file") +
                         ", expected a JSONL file");
  }
  identity_ = identify_file("/proc/self/fd/" + std::to_string(file_));
  ::posix_fadvise(file_, 0, 0, POSIX_FADV_SEQUENTIAL);

  const auto block = std::make_unique<char[]>(kScanBlock);
  uint64_t at =
      read(0, block.get(), 3) == 3 && std::memcmp(block.get(), "\xef\xbb\xbf", 3) == 0 ? 3 : 0;
  bool blank = true;
  uint64_t last_start = at;
  auto count_line = [&](uint64_t offset) {
    if (size_ % kStride == 0) starts_.push_back(offset);
    ++size_;
    blank = true;
  };
  LineSplitter lines(at);
  while (const size_t bytes = read(at, block.get(), kScanBlock)) {
    lines.feed(block.get(), bytes, [&](uint64_t offset, const char* part, size_t size, bool ends) {
      last_start = offset;
      if (blank) blank = is_blank(part, size);
      if (at + (part - block.get()) + size - offset > kMaxLine)
        fail_input(path_, "line after " + std::to_string(size_) +
                              " others has more than 256 MiB, expected one JSON object "
                              "a line");
      if (ends && !blank) count_line(offset);
      return true;
    });
    at += bytes;
  }
  if (!blank) count_line(last_start);
  starts_.shrink_to_fit();
  // Shuffled reading follows; read-ahead would only fill the page cache.
  ::posix_fadvise(file_, 0, 0, POSIX_FADV_RANDOM);
}

JsonlIndex::~JsonlIndex() {
  if (file_ >= 0) ::close(file_);
}

JsonlIndex::JsonlIndex(JsonlIndex&& other) noexcept
    : path_(std::move(other.path_)),
      file_(std::exchange(other.file_, -1)),
      identity_(other.identity_),
      size_(other.size_),
      starts_(std::move(other.starts_)) {}

// Fewer bytes than asked only at the end of the file.
size_t JsonlIndex::read(uint64_t offset, char* to, size_t bytes) const {
  size_t done = 0;
  while (done < bytes) {
    const ssize_t n = ::pread(file_, to + done, bytes - done, offset + done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_run(path_, std::string("cannot be read (") + std::strerror(errno) + ")");
    if (n == 0) break;
    done += n;
  }
  return done;
}

JsonlIndex::Found JsonlIndex::find(int64_t i) const {
  uint64_t at = starts_[i / kStride];
  int64_t left = i % kStride;  // lines to skip
  Found found{at, ""};
  bool blank = true;
  char block[kReadBlock];
  LineSplitter lines(at);
  while (const size_t bytes = read(at, block, sizeof block)) {
    const bool more =
        lines.feed(block, bytes, [&](uint64_t offset, const char* part, size_t size, bool ends) {
          found.offset = offset;
          if (blank) blank = is_blank(part, size);
          if (left == 0) found.text.append(part, size);
          if (!ends) return true;
          if (!blank && left-- == 0) return false;
          blank = true;
          found.text.clear();
          return true;
        });
    if (!more) return found;
    at += bytes;
  }
  if (left != 0 || blank)
    fail_run(path_, "has become shorter since it was opened, expected it to stay as it is");
  return found;
}

std::string JsonlIndex::line(int64_t i) const { return find(i).text; }

std::string JsonlIndex::where(int64_t i) const {
  const uint64_t offset = find(i).offset;
  const auto block = std::make_unique<char[]>(kScanBlock);
  int64_t line = 1;
  for (uint64_t at = 0; at < offset;) {
    const size_t bytes = read(at, block.get(), std::min<uint64_t>(kScanBlock, offset - at));
    if (bytes == 0) break;
    line += std::count(block.get(), block.get() + bytes, '\n');
    at += bytes;
  }
  return path_ + ":" + std::to_string(line);
}

}  // namespace lorashard
