#include "checkpoint/weight_state.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "configs/error.h"

namespace lorashard {
namespace {

constexpr const char* kStem = "trainer_state";
constexpr const char* kAdapterFile = "adapter_config.json";
constexpr int64_t kPiece = 1 << 20;  // floats checked at a time

std::vector<int64_t> shape_of(const TensorSpec& t) {
  return t.vector ? std::vector{t.cols} : std::vector{t.rows, t.cols};
}

uint64_t bytes_of(const TensorSpec& t) { return uint64_t(t.rows * t.cols) * sizeof(float); }

std::string file_name(size_t index, size_t count) {
  if (count == 1) return std::string(kStem) + ".safetensors";
  char name[64];
  std::snprintf(name, sizeof name, "%s-%05zu-of-%05zu.safetensors", kStem, index + 1, count);
  return name;
}

std::vector<fs::path> state_files(const fs::path& dir) {
  std::vector<fs::path> files;
  std::error_code ec;
  for (const auto& entry : fs::directory_iterator(dir, ec)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(kStem) && name.ends_with(".safetensors")) files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace

std::string state_name(const std::string& tensor, WeightState state) {
  return tensor + std::array{"", ".exp_avg", ".exp_avg_sq"}[size_t(state)];
}

std::map<std::string, std::string> write_weight_state(const fs::path& dir,
                                                      const std::vector<TensorSpec>& tensors,
                                                      const StreamState& stream,
                                                      uint64_t max_file_bytes) {
  std::vector<std::vector<const TensorSpec*>> files;
  uint64_t used = 0;
  for (const TensorSpec& t : tensors) {
    const uint64_t bytes = bytes_of(t) * std::size(kWeightStates);
    if (files.empty() || used + bytes > max_file_bytes) {
      files.emplace_back();
      used = 0;
    }
    files.back().push_back(&t);
    used += bytes;
  }
  std::map<std::string, std::string> digests;
  for (size_t f = 0; f < files.size(); ++f) {
    std::vector<SafetensorsWriter::Entry> entries;
    for (const TensorSpec* t : files[f]) {
      for (const WeightState state : kWeightStates)
        entries.push_back({state_name(t->name, state), DType::F32, shape_of(*t)});
    }
    const std::string name = file_name(f, files.size());
    SafetensorsWriter out(dir / name, entries, {{"format", "lorashard trainer state"}});
    for (const TensorSpec* t : files[f]) {
      for (const WeightState state : kWeightStates) {
        stream(*t, state, [&](const float* values, int64_t count) {
          out.write(values, uint64_t(count) * sizeof(float));
        });
      }
    }
    out.close();
    digests[name] = out.sha256();
  }
  return digests;
}

WeightStateFiles::WeightStateFiles(const fs::path& dir, const std::vector<TensorSpec>& tensors) {
  for (const fs::path& path : state_files(dir)) {
    files_.push_back(SafetensorsFile::open(path));
    for (const TensorInfo& t : files_.back().tensors()) {
      if (!tensors_.emplace(t.name, std::pair{files_.size() - 1, t}).second)
        fail_input(path.string() + ": " + t.name, "stands in another file of the checkpoint too");
    }
  }
  size_t seen = 0;
  std::vector<float> piece;
  for (const TensorSpec& spec : tensors) {
    for (const WeightState state : kWeightStates) {
      const std::string name = state_name(spec.name, state);
      const auto found = tensors_.find(name);
      if (found == tensors_.end()) fail_input((dir / kStem).string() + ": " + name, "is missing");
      const auto& [file, info] = found->second;
      const std::string where = files_[file].file().path().string() + ": " + name;
      if (info.dtype != DType::F32 || info.shape != shape_of(spec))
        fail_input(where, "has another type or shape than the model's tensor");
      ++seen;
      for (int64_t at = 0, n = info.elements(); at < n; at += kPiece) {
        piece.resize(size_t(std::min(kPiece, n - at)));
        read(spec, state, at, int64_t(piece.size()), piece.data());
        const bool squares = state == WeightState::SecondMoment;
        for (const float v : piece)
          if (!std::isfinite(v) || (squares && v < 0))
            fail_input(where, squares ? "holds a value that is negative or not finite"
                                      : "holds a value that is not finite");
      }
      files_[file].file().release(info.offset, info.offset + info.bytes);
    }
  }
  if (seen != tensors_.size())
    fail_input(dir.string(), "holds tensors that the model does not have");
}

void WeightStateFiles::read(const TensorSpec& tensor, WeightState state, int64_t first,
                            int64_t count, float* values) const {
  const auto& [file, info] = tensors_.at(state_name(tensor.name, state));
  std::memcpy(values, files_[file].data(info) + first * int64_t{sizeof(float)},
              size_t(count) * sizeof(float));
}

std::vector<std::string> inspect_weight_state(const fs::path& dir) {
  std::vector<TensorSpec> tensors;
  int64_t weights = 0;
  for (const fs::path& path : state_files(dir)) {
    const SafetensorsFile file = SafetensorsFile::open(path);
    for (const TensorInfo& t : file.tensors()) {
      if (t.name.ends_with(".exp_avg") || t.name.ends_with(".exp_avg_sq")) continue;
      const bool vector = t.shape.size() == 1;
      if (t.shape.empty() || t.shape.size() > 2)
        fail_input(path.string() + ": " + t.name, "is neither a matrix nor a vector");
      tensors.push_back({t.name, vector ? 1 : t.shape[0], t.shape.back(), vector, Split::None});
      weights += t.elements();
    }
  }
  const WeightStateFiles checked(dir, tensors);
  return {"full fine-tuning: " + std::to_string(tensors.size()) + " tensors, " +
          std::to_string(weights) + " weights with their moments, fp32"};
}

bool has_weight_state(const fs::path& dir) {
  std::error_code ec;
  return !fs::exists(dir / kAdapterFile, ec) && !state_files(dir).empty();
}

}  // namespace lorashard
