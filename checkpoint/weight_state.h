// The training state of all weights of a model: files of checkpoints of full fine-tuning.
//
// trainer_state.safetensors, or several with its name as Hugging Face numbers them, hold for each
// tensor NAME of the model in fp32 and whole: NAME, NAME.exp_avg, NAME.exp_avg_sq. No file knows a
// layout.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "checkpoint/model_config.h"
#include "checkpoint/safetensors.h"

namespace lorashard {

enum class WeightState : uint8_t { Value, FirstMoment, SecondMoment };
inline constexpr WeightState kWeightStates[] = {WeightState::Value, WeightState::FirstMoment,
                                                WeightState::SecondMoment};
// "NAME.exp_avg"
std::string state_name(const std::string& tensor, WeightState state);

// Calls emit(values, count) for all values of a tensor in row-major order, piece by piece.
using EmitFloats = std::function<void(const float* values, int64_t count)>;
using StreamState =
    std::function<void(const TensorSpec& tensor, WeightState state, const EmitFloats& emit)>;

// Writes the files into `dir`, what `stream` gives for each tensor and state, in order. Returns
// their SHA-256 by name.
std::map<std::string, std::string> write_weight_state(const fs::path& dir,
                                                      const std::vector<TensorSpec>& tensors,
                                                      const StreamState& stream,
                                                      uint64_t max_file_bytes = 5'000'000'000);

// The files of a checkpoint, mapped.
class WeightStateFiles {
 public:
  // Errors (status 2) naming file and tensor: one is missing, of another type or shape, left over,
  // not finite, or negative where it is a square.
  WeightStateFiles(const fs::path& dir, const std::vector<TensorSpec>& tensors);
  // Row-major values of a tensor, from element `first` on.
  void read(const TensorSpec& tensor, WeightState state, int64_t first, int64_t count,
            float* values) const;

 private:
  std::vector<SafetensorsFile> files_;
  std::map<std::string, std::pair<size_t, TensorInfo>> tensors_;  // with their file
};

// Whether `dir` is a checkpoint with such files and no adapter, all files of its manifest being
// there, and what they hold, for `inspect`, with all checks
// of WeightStateFiles but those against a model.
bool has_weight_state(const fs::path& dir);
std::vector<std::string> inspect_weight_state(const fs::path& dir);

}  // namespace lorashard
