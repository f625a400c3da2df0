// The frozen base: a Hugging Face directory or a base shard set, opened read-only, checked against
// its config.json, and read slice by slice.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "checkpoint/model_config.h"
#include "kernels/tensor.h"
#include "parallel/collectives.h"

namespace lorashard {

// A tensor or a part of it in memory: a view of the mapped pages where the part is contiguous in
// one file (no copy), else a private copy of just that part. Holds what it needs to stay valid.
struct WeightSlice {
  ConstMatrix matrix;
  std::shared_ptr<const void> owner;
};

class BaseModel {
 public:
  // Accepts a Hugging Face directory (model.safetensors, or an index with shards) or a base shard
  // set. Checks the tensors' names and shapes against the config. Errors: status 2, naming file and
  // tensor (and the setting, for the config).
  static std::unique_ptr<BaseModel> open(const std::string& path);
  virtual ~BaseModel() = default;

  const std::string& path() const { return path_; }
  const ModelConfig& config() const { return config_; }
  // config.json as read, for export.
  const std::string& config_text() const { return config_text_; }

  struct Tensor {
    std::string name;
    DType dtype;
    std::vector<int64_t> shape;
  };
  // Every tensor of the logical base by name, in the order of model_tensors(). Tensors that the
  // architecture does not use (rotary inverse frequencies of old files) are left out with a note;
  // unknown ones are an error.
  const std::vector<Tensor>& tensors() const { return tensors_; }
  const Tensor* find(const std::string& name) const;

  // Rows [row_begin, row_end) x columns [col_begin, col_end) of a tensor; a vector counts as one
  // row.
  virtual WeightSlice slice(const std::string& name, const TensorPart& part) const = 0;
  WeightSlice whole(const std::string& name) const;

  // Companion files to carry along on export (tokenizer, generation config, licence, …): full
  // paths.
  virtual std::vector<std::string> companion_files() const = 0;

  // The logical base digest: hex SHA-256 over each tensor's name, dtype, shape and bytes; the same
  // for both forms. Reads every byte once, shared out over the ranks of `world`, and refuses
  // non-finite weights by tensor name in the same pass; remembered per file (path, size,
  // modification time) in $XDG_CACHE_HOME/lorashard (~/.cache/lorashard). Collective.
  virtual std::string digest(Communicator& world) const = 0;

 protected:
  std::string path_, config_text_;
  ModelConfig config_;
  std::vector<Tensor> tensors_;
};

// Writes an immutable base shard set for tensor-parallel degree `ranks` into the new directory
// `out`: manifest.textproto (SHA-256 of each file and of the logical base), config.json and
// companions, one part-RRRRR-of-NNNNN.safetensors a rank; all files 0444. A tensor part that
// several ranks hold (norms, shared key/value heads) is written once. Memory is bounded by the
// largest part.
void write_base_shards(const BaseModel& base, int ranks, const std::string& out,
                       Communicator& world);

}  // namespace lorashard
