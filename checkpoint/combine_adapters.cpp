#include "checkpoint/combine_adapters.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

#include "configs/error.h"
#include "kernels/random.h"

namespace lorashard {
namespace {

using Values = std::vector<float>;

// One factor of one module in one adapter, with its weight.
struct Task {
  const Values* values;
  double weight;
  uint64_t place;  // of the RNG: adapter and tensor
};

bool drops_at_random(Combination c) {
  return c == Combination::DareLinear || c == Combination::DareTies;
}

bool elects_signs(Combination c) { return c == Combination::Ties || c == Combination::DareTies; }

// The floor(density n) values of largest magnitude, the others 0.
Values largest_kept(const Values& values, double density) {
  std::vector<size_t> order(values.size());
  std::iota(order.begin(), order.end(), size_t{0});
  const auto kept = std::ptrdiff_t(density * double(values.size()));
  const auto larger = [&](size_t i, size_t j) {
    const float x = std::fabs(values[i]), y = std::fabs(values[j]);
    return x > y || (x == y && i < j);
  };
  std::nth_element(order.begin(), order.begin() + kept, order.end(), larger);
  Values result(values.size(), 0);
  for (auto i = order.begin(); i != order.begin() + kept; ++i) result[*i] = values[*i];
  return result;
}

// Each value kept with probability `density` and then divided by it.
Values dropped_and_rescaled(const Task& task, double density, uint64_t seed) {
  Values result(task.values->size(), 0);
  for (size_t i = 0; i < result.size(); ++i) {
    const auto words = random_words(seed, Purpose::Dropout, task.place, i / 4);
    if (double(uniform01(words[i % 4])) < density)
      result[i] = float(double((*task.values)[i]) / density);
  }
  return result;
}

Values sparsified(const Task& task, const CombineOptions& o) {
  if (o.density >= 1 || o.method == Combination::Linear) return *task.values;
  return drops_at_random(o.method) ? dropped_and_rescaled(task, o.density, o.seed)
                                   : largest_kept(*task.values, o.density);
}

// peft/utils/merge_utils.py. All tasks have the same number of values.
Values merged(const std::vector<Task>& tasks, const CombineOptions& o) {
  std::vector<Values> sparse;
  for (const Task& t : tasks) sparse.push_back(sparsified(t, o));
  Values result(tasks[0].values->size());
  const auto sign = [](float x) { return x > 0 ? 1 : x < 0 ? -1 : 0; };
  for (size_t i = 0; i < result.size(); ++i) {
    int majority = 0;
    if (elects_signs(o.method)) {
      double sum = 0;
      for (const Values& v : sparse)
        sum += o.majority == MajoritySign::Total ? double(v[i]) : double(sign(v[i]));
      majority = sum >= 0 ? 1 : -1;
    }
    double sum = 0;
    int agree = 0;
    for (size_t t = 0; t < tasks.size(); ++t) {
      if (majority != 0 && sign(sparse[t][i]) != majority) continue;
      sum += tasks[t].weight * double(sparse[t][i]);
      ++agree;
    }
    result[i] = float(majority != 0 ? sum / std::max(agree, 1) : sum);
  }
  return result;
}

// What one adapter has of a module.
struct Part {
  const AdapterModule* module;
  double weight;  // times its scaling
  uint64_t adapter;
};

void concatenate(AdapterModule& m, const std::vector<Part>& parts) {
  for (const Part& p : parts) m.rank += p.module->rank;
  m.b.resize(size_t(m.out_features * m.rank));
  int64_t column = 0;
  for (const Part& p : parts) {
    for (const float a : p.module->a) m.a.push_back(float(double(a) * p.weight));
    for (int64_t row = 0; row < m.out_features; ++row)
      std::copy_n(&p.module->b[size_t(row * p.module->rank)], p.module->rank,
                  &m.b[size_t(row * m.rank + column)]);
    column += p.module->rank;
  }
}

void merge(AdapterModule& m, const std::vector<Part>& parts, const CombineOptions& o,
           uint64_t site) {
  m.rank = parts[0].module->rank;
  std::vector<Task> a, b;
  for (const Part& p : parts) {
    const double root = std::sqrt(std::fabs(p.weight));
    const uint64_t place = (p.adapter << 40) + 2 * site;
    a.push_back({&p.module->a, p.weight < 0 ? -root : root, place});
    b.push_back({&p.module->b, root, place + 1});
  }
  m.a = merged(a, o);
  m.b = merged(b, o);
}

void check(const std::vector<Adapter>& adapters, const std::vector<std::string>& names,
           const std::vector<LinearModule>& modules) {
  std::string digest;
  for (size_t i = 0; i < adapters.size(); ++i) {
    const AdapterConfig& c = adapters[i].config;
    if (c.use_dora) fail_input(names[i], "is a DoRA adapter; adapters of plain LoRA are merged");
    if (!adapters[i].trained.empty())
      fail_input(names[i], "holds trained tensors of the base (" +
                               adapters[i].trained[0].base.name +
                               "); adapters of factors alone are merged");
    for (const AdapterModule& m : adapters[i].modules)
      if (std::none_of(modules.begin(), modules.end(),
                       [&](const LinearModule& linear) { return linear.name == m.name; }))
        fail_input(names[i], "adapts " + m.name + "; adapters of the layers' modules are merged");
    if (!digest.empty() && !c.base_digest.empty() && c.base_digest != digest)
      fail_input(names[i], "was trained on another base than the adapters before it: digest " +
                               c.base_digest + ", theirs is " + digest);
    if (!c.base_digest.empty()) digest = c.base_digest;
  }
}

}  // namespace

Adapter combine_adapters(const std::vector<Adapter>& adapters,
                         const std::vector<std::string>& names, const CombineOptions& options,
                         const std::vector<LinearModule>& modules) {
  check(adapters, names, modules);
  CombineOptions o = options;
  if (adapters.size() == 1) o.method = Combination::Linear;
  Adapter result;
  std::vector<LinearModule> chosen;
  for (size_t site = 0; site < modules.size(); ++site) {
    const LinearModule& linear = modules[site];
    std::vector<Part> parts;
    for (size_t i = 0; i < adapters.size(); ++i) {
      for (const AdapterModule& m : adapters[i].modules) {
        if (m.name != linear.name) continue;
        parts.push_back({&m, o.weights[i] * adapters[i].scaling(m), i});
        if (o.method != Combination::Cat && m.rank != parts[0].module->rank)
          fail_input(names[i], "has rank " + std::to_string(m.rank) + " in " + m.name + ", " +
                                   names[parts[0].adapter] + " has " +
                                   std::to_string(parts[0].module->rank) +
                                   "; only cat merges factors of different ranks");
      }
    }
    if (parts.empty()) continue;
    chosen.push_back(linear);
    AdapterModule& m = result.modules.emplace_back();
    m.name = linear.name;
    m.in_features = linear.in_features;
    m.out_features = linear.out_features;
    m.rank = 0;
    if (o.method == Combination::Cat)
      concatenate(m, parts);
    else
      merge(m, parts, o, site);
    m.alpha = double(m.rank);
  }
  AdapterConfig& c = result.config;
  c.base_model = adapters[0].config.base_model;
  for (const Adapter& a : adapters)
    if (!a.config.base_digest.empty()) c.base_digest = a.config.base_digest;
  c.rank = 1;
  for (const AdapterModule& m : result.modules) c.rank = std::max(c.rank, m.rank);
  c.alpha = double(c.rank);
  for (const LinearModule& m : chosen) c.target_modules.push_back(m.name);
  // By the last part of a name where all modules of that name are chosen.
  c.target_regex = true;
  name_targets(c, modules, chosen);
  return result;
}

}  // namespace lorashard
