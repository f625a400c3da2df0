// Files of tests/golden/tokenizers, and a folder of one's own.
#pragma once

#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>

namespace lorashard {

// The unpacked content of tests/golden/tokenizers/NAME; uses the program xz.
inline std::string unpack(const std::string& name) {
  const std::string path = std::string(LORASHARD_SOURCE_DIR) + "/tests/golden/tokenizers/" + name;
  FILE* pipe = popen(("xz -dc '" + path + "'").c_str(), "r");
  if (pipe == nullptr) throw std::runtime_error("xz does not start");
  std::string text;
  char block[1 << 16];
  for (size_t size; (size = fread(block, 1, sizeof(block), pipe)) > 0;) text.append(block, size);
  if (pclose(pipe) != 0) throw std::runtime_error("xz cannot unpack " + path);
  return text;
}

class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string name = (std::filesystem::temp_directory_path() / "lorashard-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder");
    path_ = name;
  }
  ~TemporaryDirectory() { std::filesystem::remove_all(path_); }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  const std::filesystem::path& path() const { return path_; }
  void write(const std::string& name, const std::string& content) const {
    std::ofstream(path_ / name, std::ios::binary) << content;
  }

 private:
  std::filesystem::path path_;
};

}  // namespace lorashard
