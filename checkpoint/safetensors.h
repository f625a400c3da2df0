// The safetensors format: a bounds-checked reader over a map and a streaming writer.
//
// Layout: 8 bytes little-endian header length, JSON header, data. Every offset is checked: tensors
// lie inside the file, do not overlap, leave no holes, and their size is that of dtype and shape.
// The format does not promise that a tensor's data are aligned to its element size: aligned()
// says, and a reader of misaligned data copies before it casts.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/file_io.h"
#include "kernels/tensor.h"

namespace lorashard {

struct TensorInfo {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;
  uint64_t offset, bytes;  // of the data, from the start of the file
  int64_t elements() const;
};

class SafetensorsFile {
 public:
  // Errors (status 2) read "FILE: what" or "FILE: TENSOR: what".
  static SafetensorsFile open(const fs::path& path);

  const std::vector<TensorInfo>& tensors() const { return tensors_; }  // in file order
  const TensorInfo* find(const std::string& name) const;
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const char* data(const TensorInfo& t) const { return file_->data() + t.offset; }
  bool aligned(const TensorInfo& t) const {
    return reinterpret_cast<uintptr_t>(data(t)) % static_cast<uintptr_t>(size_of(t.dtype)) == 0;
  }
  const MappedFile& file() const { return *file_; }
  // The map, for views that outlive this object.
  std::shared_ptr<const MappedFile> shared_file() const { return file_; }

 private:
  std::shared_ptr<MappedFile> file_;
  std::vector<TensorInfo> tensors_;
  std::map<std::string, size_t> index_;
  std::map<std::string, std::string> metadata_;
};

// Streams tensors into a new file: the header is fixed first, then each tensor's bytes in the order
// given. The data begin at a multiple of 64 bytes. Allocates nothing for the data.
// `hashed` as in OutputFile.
class SafetensorsWriter {
 public:
  struct Entry {
    std::string name;
    DType dtype;
    std::vector<int64_t> shape;
  };
  SafetensorsWriter(const fs::path& path, const std::vector<Entry>& entries,
                    const std::map<std::string, std::string>& metadata = {{"format", "pt"}},
                    bool hashed = true);
  // The next `bytes` bytes of the data. REQUIRES: entries' bytes in order, no more than their sum.
  void write(const void* data, uint64_t bytes);
  // REQUIRES: all bytes were written.
  void close();
  const std::string& sha256() const { return out_.sha256(); }

 private:
  OutputFile out_;
  uint64_t remaining_ = 0;
};

}  // namespace lorashard
