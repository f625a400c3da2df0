// The frozen base: a Hugging Face directory or a base shard set, opened read-only, checked against
// its config.json, and read slice by slice.
#pragma once

#include <map>
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

struct BaseStorage;  // checkpoint/base_storage.h: the mapped files and where each tensor lies

class BaseModel {
 public:
  // Accepts a Hugging Face directory (model.safetensors, or an index with shards) or a base shard
  // set. Checks the tensors' names and shapes against the config. Errors: status 2, naming file and
  // tensor (and the setting, for the config).
  static std::unique_ptr<BaseModel> open(const std::string& path);

  const std::string& path() const { return path_; }
  // stored_dtype is that of the embedding as it lies in the file.
  const ModelConfig& config() const { return config_; }
  // config.json as read, for export.
  const std::string& config_text() const { return config_text_; }
  // Whether this is a base shard set.
  bool is_shard_set() const;
  // Worth reporting: tensors in the files that the architecture does not use.
  const std::vector<std::string>& notes() const { return notes_; }

  struct Tensor {
    std::string name;
    DType dtype;
    std::vector<int64_t> shape;
    int64_t rows() const { return shape.size() == 2 ? shape[0] : 1; }
    int64_t cols() const { return shape.back(); }
    uint64_t bytes() const { return static_cast<uint64_t>(rows() * cols() * size_of(dtype)); }
  };
  // Every tensor of the logical base by name, in the order of model_tensors(). Tensors that the
  // architecture does not use (rotary inverse frequencies of old files) are left out with a note;
  // unknown ones are an error.
  const std::vector<Tensor>& tensors() const { return tensors_; }
  const Tensor* find(const std::string& name) const;

  // Rows [row_begin, row_end) x columns [col_begin, col_end) of a tensor; a vector counts as one
  // row. Copies touch the file's pages piece by piece, so that the tensor is never in memory as a
  // whole. Threads may call it at once. REQUIRES: the tensor exists and the part lies inside it.
  WeightSlice slice(const std::string& name, const TensorPart& part) const;
  WeightSlice whole(const std::string& name) const;
  // Gives the mapped pages of a tensor back to the system, for readers that need each weight once;
  // views stay valid and fault the pages in again.
  void release(const std::string& name) const;

  // Companion files to carry along on export (tokenizer, chat templates, generation config,
  // licence, …): names below path(), those in subfolders too. Everything but config.json, weights,
  // subfolders that hold weights (the model in another form) and what is hidden.
  std::vector<std::string> companion_files() const;

  // The logical base digest: hex SHA-256 over each tensor's name, dtype, shape and bytes; the same
  // for both forms. Reads every byte once, shared out over the ranks of `world` that have the same
  // files, and refuses non-finite weights by tensor name while reading; remembered per file
  // (path, size, modification time) in $XDG_CACHE_HOME/lorashard (~/.cache/lorashard). Collective;
  // a failure on one rank is thrown on all, and so is a base that is not the same on all ranks
  // (status 2, naming file and tensor, ranks and hosts). Of a shard set it verifies the SHA-256 of
  // every file.
  //
  // A tensor's digest is the SHA-256 of the concatenated SHA-256 of each 16 MiB of its row-major
  // bytes; the base's is the SHA-256 of the lines "NAME DTYPE ROWSxCOLS HEX\n" (a vector: "N")
  // sorted by name.
  std::string digest(Communicator& world) const;

  // For the functions of checkpoint/ that open, digest and split bases.
  const BaseStorage& storage() const { return *storage_; }
  BaseModel(std::string path, ModelConfig config, std::string config_text,
            std::vector<Tensor> tensors, std::shared_ptr<const BaseStorage> storage,
            std::vector<std::string> notes);

 private:
  std::string path_, config_text_;
  ModelConfig config_;
  std::vector<Tensor> tensors_;
  std::map<std::string, size_t> index_;
  std::shared_ptr<const BaseStorage> storage_;
  std::vector<std::string> notes_;
};

// Writes an immutable base shard set for tensor-parallel degree `ranks` into the new directory
// `out`: manifest.textproto (SHA-256 of each file and of the logical base), config.json and
// companions, one part-RRRRR-of-NNNNN.safetensors a rank; all files 0444. A tensor part that
// several ranks hold (norms, shared key/value heads) is written once. Memory is bounded by the
// largest part. Collective: the ranks of `world`, of which there may be any number, share the work.
// Errors: `out` exists; a weight is not finite; I/O.
void write_base_shards(const BaseModel& base, int ranks, const std::string& out,
                       Communicator& world);

}  // namespace lorashard
