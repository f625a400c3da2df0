#include "trainer/model/factors.h"

#include <algorithm>
#include <cassert>
#include <cmath>

#include "checkpoint/expert_names.h"
#include "kernels/random.h"
#include "kernels/transfer.h"

namespace lorashard {
namespace {

// Whether a tensor lies expert by expert in flat buffers, unlike in files.
bool by_expert(const AdapterTensor& t, const AdapterModule& m) {
  return m.experts > 1 && t.kind == AdapterTensorKind::LoraB;
}

}  // namespace

Factors::Factors(Stream& stream, AdapterLayout layout)
    : layout_(std::move(layout)),
      stream_(&stream),
      values_(stream, size_t(size()) * sizeof(float)) {}

const LoraModule* Factors::find(const std::string& name) const {
  for (const LoraModule& m : modules()) {
    if (m.linear.name == name) return &m;
  }
  return nullptr;
}

void Factors::initialize(uint64_t seed) {
  std::vector<float> flat(static_cast<size_t>(size()));
  for (const AdapterTensor& t : layout_.tensors) {
    if (t.kind != AdapterTensorKind::LoraA) continue;
    const float bound = 1.0f / std::sqrt(float(t.cols));
    float* a = flat.data() + t.offset;
    for (int64_t i = 0; i < t.size(); i += 4) {
      const auto words =
          random_words(seed, Purpose::FactorInit, modules()[t.module].site, uint64_t(i / 4));
      for (int64_t j = i; j < std::min(i + 4, t.size()); ++j) {
        a[j] = (2 * uniform01(words[size_t(j - i)]) - 1) * bound;
      }
    }
  }
  write(values(), flat);
}

std::vector<float> Factors::read(const float* flat) const {
  return host_copy(*stream_, flat, size());
}

void Factors::write(float* flat, const std::vector<float>& host) {
  assert(int64_t(host.size()) == size());
  copy_to_device(*stream_, flat, host.data(), size() * int64_t{sizeof(float)});
}

std::vector<AdapterModule> Factors::read_modules(const float* flat) const {
  std::vector<AdapterModule> modules;
  for (const LoraModule& m : layout_.modules) modules.push_back(shapes_of(m));
  for (const AdapterTensor& t : layout_.tensors) {
    AdapterModule& m = modules[t.module];
    std::vector<float> host = host_copy(*stream_, flat + t.offset, t.size());
    if (by_expert(t, m)) host = file_order(host, m.out_features, m.lora_rank(), m.experts);
    m.*kAdapterTensors[size_t(t.kind)].values = std::move(host);
  }
  return modules;
}

void Factors::write_modules(float* flat, const std::vector<AdapterModule>& modules) {
  assert(modules.size() == layout_.modules.size());
  for (const AdapterTensor& t : layout_.tensors) {
    const AdapterModule& m = modules[t.module];
    const AdapterModule shapes = shapes_of(layout_.modules[t.module]);
    std::vector<float> reordered;
    if (by_expert(t, shapes))
      reordered = expert_major(m.*kAdapterTensors[size_t(t.kind)].values, shapes.out_features,
                               shapes.lora_rank(), shapes.experts);
    const auto& host = reordered.empty() ? m.*kAdapterTensors[size_t(t.kind)].values : reordered;
    assert(int64_t(host.size()) == t.size());
    copy_to_device(*stream_, flat + t.offset, host.data(), t.size() * int64_t{sizeof(float)});
  }
}

}  // namespace lorashard
