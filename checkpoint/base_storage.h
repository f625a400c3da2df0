// Inside of BaseModel: the mapped files of a base and where the pieces of each tensor lie. A
// Hugging Face directory has one piece a tensor, a base shard set one a rank that owns some of it.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/base_model.h"
#include "checkpoint/manifest.pb.h"
#include "checkpoint/safetensors.h"

namespace lorashard {

// `part` of a tensor, stored row-major without gaps as `info` of files[file].
struct BasePiece {
  size_t file;
  TensorInfo info;
  TensorPart part;
};

struct BaseStorage {
  std::vector<SafetensorsFile> files;
  std::map<std::string, std::vector<BasePiece>> pieces;  // by tensor; they tile it
  std::vector<std::string> companions;                   // names below the base's folder
  std::optional<BaseShardManifest> manifest;             // of a base shard set
};

// The two forms. Errors as BaseModel::open.
std::unique_ptr<BaseModel> open_hugging_face(const std::string& path);
std::unique_ptr<BaseModel> open_base_shards(const std::string& path);

inline constexpr const char* kManifestName = "manifest.textproto";

// Shape and dtype of `info`, stored in `file`, against what the architecture says. Errors name
// both.
void check_tensor(const std::string& file, const TensorSpec& spec, DType dtype,
                  const std::vector<int64_t>& shape);

// Every regular file of a model directory that holds no weights and is not config.json, sorted.
std::vector<std::string> find_companions(const std::string& path);

}  // namespace lorashard
