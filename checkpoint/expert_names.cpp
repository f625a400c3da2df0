#include "checkpoint/expert_names.h"

#include <algorithm>
#include <cassert>
#include <cstring>

namespace lorashard {
namespace {

constexpr const char* kExperts = ".mlp.experts.";
constexpr const char* kGateUp = "gate_up_proj";
constexpr const char* kDown = "down_proj";
constexpr const char* kWeight = ".weight";

// B(out, r, experts) by file, B(experts, out, r) by expert: calls copy(index in file, by expert).
template <class Copy>
void reorder(int64_t out, int64_t r, int64_t experts, const Copy& copy) {
  for (int64_t o = 0; o < out; ++o)
    for (int64_t k = 0; k < r; ++k)
      for (int64_t e = 0; e < experts; ++e)
        copy(size_t((o * r + k) * experts + e), size_t((e * out + o) * r + k));
}

}  // namespace

std::string experts_of(const std::string& name) {
  const size_t at = name.find(kExperts);
  return at == std::string::npos ? "" : name.substr(0, at + std::strlen(kExperts) - 1);
}

std::string parameter_name(const std::string& module) {
  const std::string experts = experts_of(module);
  if (experts.empty()) return module + kWeight;
  return experts + "." + (module.ends_with(kDown) ? kDown : kGateUp);
}

std::string down_beside(const std::string& name) {
  const std::string experts = experts_of(name);
  return !experts.empty() && name.ends_with(kGateUp) ? experts + "." + kDown : "";
}

std::string factor_holder(const std::string& name, bool down_adapted) {
  const std::string experts = experts_of(name);
  if (name == experts + "." + kDown) return experts;
  if (name == experts + "." + kGateUp) return experts + (down_adapted ? ".base_layer" : "");
  return name.ends_with(kWeight) ? name.substr(0, name.size() - std::strlen(kWeight)) : name;
}

void name_parameter(LinearModule& m, const AdapterConfig& config, bool nested, int64_t a_rows) {
  const std::string experts = experts_of(m.name + ".");
  const auto targeted = [&](const std::string& name) {
    return std::any_of(config.target_parameters.begin(), config.target_parameters.end(),
                       [&](const std::string& t) { return name == t || name.ends_with("." + t); });
  };
  if (m.name == experts || m.name == experts + ".base_layer") {
    const std::string down = experts + "." + kDown, gate_up = experts + "." + kGateUp;
    m.name = m.name == experts && (nested || !targeted(gate_up)) ? down : gate_up;
    m.parameter = true;
    m.experts = std::max<int64_t>(1, a_rows / module_rank(config, m.name));
  } else if (m.name.ends_with(".mlp.gate") && targeted(m.name + kWeight)) {
    m.name += kWeight;
    m.parameter = true;
  }
}

WeightFactors weight_factors(const std::string& tensor) {
  assert(tensor.ends_with(kWeight));
  const std::string module = tensor.substr(0, tensor.size() - std::strlen(kWeight));
  const std::string experts = experts_of(module);
  if (!experts.empty())
    return {parameter_name(module), std::stoll(module.substr(experts.size() + 1)),
            !module.ends_with(kDown), module.ends_with("up_proj")};
  return {module.ends_with(".mlp.gate") ? tensor : module};
}

std::vector<float> expert_major(const std::vector<float>& b, int64_t out, int64_t r,
                                int64_t experts) {
  std::vector<float> result(b.size());
  reorder(out, r, experts, [&](size_t file, size_t expert) { result[expert] = b[file]; });
  return result;
}

std::vector<float> expert_rows_of_b(const AdapterModule& m, int64_t e, int64_t first,
                                    int64_t rows) {
  std::vector<float> b;
  for (int64_t row = first; row < first + rows; ++row)
    for (int64_t k = 0; k < m.lora_rank(); ++k)
      b.push_back(m.b[size_t(row * m.rank + k * m.experts + e)]);
  return b;
}

std::vector<float> file_order(const std::vector<float>& b, int64_t out, int64_t r,
                              int64_t experts) {
  std::vector<float> result(b.size());
  reorder(out, r, experts, [&](size_t file, size_t expert) { result[file] = b[expert]; });
  return result;
}

}  // namespace lorashard
