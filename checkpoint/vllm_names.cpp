// An adapter under the names that vLLM reads (vllm/lora: parse_fine_tuned_lora_name,
// PackedLoRALayerWeights.pack_moe, PEFTHelper): of experts
// base_model.model.model.layers.N.mlp.experts.E.{gate_proj,up_proj,down_proj}.lora_{A,B}.weight.
#include <algorithm>
#include <map>
#include <set>

#include "checkpoint/expert_names.h"

namespace lorashard {
namespace {

// The module with rank `rank` (rows of A and columns of B padded with zeros) and B times `factor`.
AdapterModule padded(AdapterModule m, int64_t rank, float factor) {
  m.a.resize(size_t(rank * m.in_features), 0.0f);
  std::vector<float> b(size_t(m.out_features * rank), 0.0f);
  for (int64_t o = 0; o < m.out_features; ++o)
    for (int64_t k = 0; k < m.rank; ++k)
      b[size_t(o * rank + k)] = factor * m.b[size_t(o * m.rank + k)];
  m.b = std::move(b);
  m.rank = rank;
  return m;
}

// Expert e's part of a stacked parameter: rows [first, first + out) of its B.
AdapterModule one_expert(const AdapterModule& m, const std::string& name, int64_t e, int64_t first,
                         int64_t out) {
  const int64_t r = m.lora_rank();
  const auto a = m.a.begin() + e * r * m.in_features;
  return {.name = name,
          .rank = r,
          .in_features = m.in_features,
          .out_features = out,
          .alpha = m.alpha,
          .a = {a, a + r * m.in_features},
          .b = expert_rows_of_b(m, e, first, out)};
}

AdapterModule zeros(const std::string& name, int64_t out, int64_t in) {
  return {.name = name, .rank = 0, .in_features = in, .out_features = out, .alpha = 1};
}

}  // namespace

Adapter for_vllm(const Adapter& adapter) {
  Adapter result{adapter.config, {}};
  AdapterConfig& c = result.config;
  int64_t rank = 1;
  for (const AdapterModule& m : adapter.modules) rank = std::max(rank, m.lora_rank());
  const double scaling = adapter.modules.empty() ? 1 : adapter.scaling(adapter.modules[0]);
  c.rank = rank;
  c.alpha = scaling * double(rank);
  c.use_rslora = false;
  c.rank_pattern.clear();
  c.alpha_pattern.clear();
  c.target_parameters.clear();
  c.target_regex = false;
  c.exclude_modules.clear();
  c.exclude_regex = false;

  const auto add = [&](AdapterModule m, double own_scaling) {
    m.alpha = c.alpha;
    result.modules.push_back(padded(std::move(m), rank, float(own_scaling / scaling)));
  };
  std::map<std::string, const AdapterModule*> by_name;
  for (const AdapterModule& m : adapter.modules) by_name[m.name] = &m;
  for (const AdapterModule& m : adapter.modules) {
    const std::string experts = experts_of(m.name);
    if (experts.empty()) {
      AdapterModule named = m;
      named.name = factor_holder(m.name, false);
      add(std::move(named), adapter.scaling(m));
      continue;
    }
    const auto find = [&](const std::string& name) {
      const auto it = by_name.find(name);
      return it == by_name.end() ? nullptr : it->second;
    };
    const AdapterModule *gate_up = find(experts + ".gate_up_proj"),
                        *down = find(experts + ".down_proj");
    if (gate_up && &m == down) continue;  // done with gate_up_proj
    const int64_t hidden = gate_up ? gate_up->in_features : down->out_features;
    const int64_t width = gate_up ? gate_up->out_features / 2 : down->in_features;
    for (int64_t e = 0; e < m.experts; ++e) {
      const std::string at = experts + "." + std::to_string(e) + ".";
      const double s = gate_up ? adapter.scaling(*gate_up) : scaling;
      for (const int64_t half : {0, 1}) {
        const std::string name = at + (half == 0 ? "gate_proj" : "up_proj");
        add(gate_up ? one_expert(*gate_up, name, e, half * width, width)
                    : zeros(name, width, hidden),
            s);
      }
      add(down ? one_expert(*down, at + "down_proj", e, 0, hidden)
               : zeros(at + "down_proj", hidden, width),
          down ? adapter.scaling(*down) : scaling);
    }
  }
  std::set<std::string> targets;
  for (const AdapterModule& m : result.modules)
    targets.insert(m.name.substr(m.name.rfind('.') + 1));
  c.target_modules.assign(targets.begin(), targets.end());
  return result;
}

}  // namespace lorashard
