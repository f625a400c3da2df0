// RUN/trace-collectives.jsonl of `output.trace_collectives`: each collective call of this rank.
#pragma once

#include <vector>

#include "checkpoint/file_io.h"
#include "parallel/mesh.h"

namespace lorashard {

class CollectiveTrace {
 public:
  // Records the calls of the mesh's communicators from now on, until it is destroyed. Call once.
  void attach(const Mesh& mesh);
  void detach();
  ~CollectiveTrace() { detach(); }
  // One object a line: group ("world", "tensor" or "data"), operation, label, bytes; the world's
  // first.
  void write(const fs::path& run_dir) const;

 private:
  const Mesh* mesh_ = nullptr;
  std::vector<CollectiveCall> world_, tensor_, data_;
};

}  // namespace lorashard
