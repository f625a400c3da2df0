// The tensors of the base that an adapter trains beside its factors.
#include <algorithm>
#include <set>

#include "checkpoint/adapter.h"
#include "configs/error.h"

namespace lorashard {

// Biases as PEFT's setting `bias` marks and names them: those of adapted modules lie in the module
// that PEFT wraps (peft/tuners/tuners_utils.py, _get_learnable_bias_state_dict).
std::vector<TrainedTensor> trained_tensors(const std::vector<TensorSpec>& tensors,
                                           const AdapterConfig& config,
                                           const std::vector<LinearModule>& adapted) {
  std::vector<TrainedTensor> saved = saved_tensors(tensors, config);
  if (config.bias == "none") return saved;
  std::set<std::string> names;
  for (const LinearModule& m : adapted) names.insert(m.name);
  std::vector<TrainedTensor> trained;
  for (const TensorSpec& t : tensors) {
    const std::string end = ".bias";
    if (!t.name.ends_with(end)) continue;
    const std::string module = t.name.substr(0, t.name.size() - end.size());
    if (names.count(module))
      trained.push_back({t, module + ".base_layer" + end});
    else if (config.bias == "all")
      trained.push_back({t, t.name});
  }
  trained.insert(trained.end(), saved.begin(), saved.end());
  return trained;
}

void check_trainable(const AdapterConfig& config, const std::vector<LinearModule>& adapted,
                     const std::vector<TensorSpec>& tensors, const std::string& where) {
  for (const LinearModule& m : adapted) {
    if (config.use_dora && m.transposed)
      fail_input(where, "use_dora is true, which is not supported for " + m.name +
                            ", whose weight is stored transposed; leave it out");
  }
  if (config.bias != "all") return;
  for (const TensorSpec& t : tensors) {  // a norm is known by its gains, a vector
    const std::string end = ".weight";
    if (!t.vector || !t.name.ends_with(end)) continue;
    const std::string bias = t.name.substr(0, t.name.size() - end.size()) + ".bias";
    if (std::any_of(tensors.begin(), tensors.end(),
                    [&](const TensorSpec& other) { return other.name == bias; }))
      fail_input(where, "bias is \"all\", which would train " + bias +
                            "; biases of norms are not supported, say lora_only");
  }
}

}  // namespace lorashard
