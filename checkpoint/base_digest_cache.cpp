// The cache of digests: one small text file for each file and host, under a name made of its
// absolute path and the host's name: where hosts share the folder, each remembers its own copy.
// Lines: a version, the path, size inode device, times of modification and change, then "HEX KEY"
// for each digest, last the SHA-256 of all that.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <sstream>

#include "checkpoint/base_digest.h"
#include "checkpoint/json_strict.h"
#include "configs/error.h"

namespace lorashard {
namespace {

std::optional<fs::path> cache_folder() {
  const auto from = [](const char* variable) {
    const char* value = std::getenv(variable);
    return fs::path(value ? value : "");
  };
  // The XDG specification has relative paths ignored.
  if (const fs::path cache = from("XDG_CACHE_HOME"); cache.is_absolute())
    return cache / "lorashard" / "digests";
  if (const fs::path home = from("HOME"); home.is_absolute())
    return home / ".cache" / "lorashard" / "digests";
  return std::nullopt;
}

std::string absolute_name(const fs::path& file) {
  std::error_code ec;
  return fs::absolute(file, ec).lexically_normal().string();
}

std::optional<fs::path> cache_file(const fs::path& file) {
  auto folder = cache_folder();
  if (!folder) return std::nullopt;
  char host[256] = "";
  ::gethostname(host, sizeof host - 1);
  const std::string name = absolute_name(file) + "\n" + host;
  return *folder / sha256_hex(name.data(), name.size());
}

std::string header_of(const fs::path& file, const FileIdentity& id) {
  std::ostringstream out;
  out << "lorashard digests 2\n"
      << printable(absolute_name(file)) << "\n"
      << id.bytes << " " << id.inode << " " << id.device << " " << id.modified_ns << " "
      << id.changed_ns << "\n";
  return out.str();
}

// Everything that is remembered of the file by key; nothing if it has changed, or the cache cannot
// be read.
std::map<std::string, Digest> recall_all(const fs::path& file, const FileIdentity& identity) {
  std::string text;
  try {
    const auto cached = cache_file(file);
    std::error_code ec;
    if (!cached || !fs::exists(*cached, ec)) return {};
    text = read_text(*cached);
  } catch (const Error&) {
    return {};
  }
  const std::string header = header_of(file, identity);
  if (text.size() < header.size() + 65 || text.compare(0, header.size(), header) != 0) return {};
  const size_t body_end = text.size() - 65;
  if (text.compare(body_end, 65, sha256_hex(text.data(), body_end) + "\n") != 0) return {};
  std::map<std::string, Digest> known;
  std::istringstream lines(text.substr(header.size(), body_end - header.size()));
  for (std::string line; std::getline(lines, line);) {
    Digest d;
    if (line.size() < 66 || !parse_hex(std::string_view(line).substr(0, 64), d)) return {};
    known[line.substr(65)] = d;
  }
  return known;
}

}  // namespace

bool parse_hex(std::string_view hex, Digest& digest) {
  if (hex.size() != 2 * digest.size()) return false;
  const auto nibble = [](char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
  };
  for (size_t i = 0; i < digest.size(); ++i) {
    const int high = nibble(hex[2 * i]), low = nibble(hex[2 * i + 1]);
    if (high < 0 || low < 0) return false;
    digest[i] = static_cast<unsigned char>(high << 4 | low);
  }
  return true;
}

std::optional<std::vector<Digest>> recall_digests(const fs::path& file,
                                                  const FileIdentity& identity,
                                                  const std::vector<std::string>& keys) {
  const std::map<std::string, Digest> known = recall_all(file, identity);
  std::vector<Digest> digests;
  for (const std::string& key : keys) {
    const auto it = known.find(key);
    if (it == known.end()) return std::nullopt;
    digests.push_back(it->second);
  }
  return digests;
}

void remember_digests(const fs::path& file, const FileIdentity& identity,
                      const std::vector<std::string>& keys, const std::vector<Digest>& digests) {
  // A file changed within the clock's granularity of its own time stamp could change again without
  // showing it; the next start will remember it.
  const int64_t now = std::chrono::duration_cast<std::chrono::nanoseconds>(
                          std::chrono::system_clock::now().time_since_epoch())
                          .count();
  constexpr int64_t kGranularity = 20'000'000;
  if (now - std::max(identity.modified_ns, identity.changed_ns) < kGranularity ||
      !(identify_file(file) == identity))
    return;
  try {
    const auto cached = cache_file(file);
    if (!cached) return;
    std::string text = header_of(file, identity);
    std::map<std::string, Digest> known = recall_all(file, identity);
    for (size_t i = 0; i < keys.size(); ++i) known[keys[i]] = digests[i];
    for (const auto& [key, digest] : known)
      text += to_hex(digest.data(), digest.size()) + " " + key + "\n";
    text += sha256_hex(text.data(), text.size()) + "\n";
    fs::create_directories(cached->parent_path());
    write_file_atomic(*cached, text);
  } catch (const std::exception&) {
    // The cache only saves time.
  }
}

}  // namespace lorashard
