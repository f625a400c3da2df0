#include "trainer/model/factors.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <numbers>

#include "kernels/float_types.h"
#include "kernels/random.h"
#include "kernels/transfer.h"

namespace lorashard {
namespace {

// Where a tensor's values stand in what files have.
template <class Values>
auto& values_of(Values& host, const AdapterTensor& t) {
  if (t.kind == AdapterTensorKind::Base) return host.trained[t.index].values;
  return host.modules[t.index].*kAdapterTensors[size_t(t.kind)].values;
}

// One of the two normal values of a pair of words (Box and Muller 1958).
float normal_of(uint32_t a, uint32_t b, bool second) {
  const double radius = std::sqrt(-2 * std::log(1 - double(uniform01(a))));
  const double angle = 2 * std::numbers::pi * uniform01(b);
  return float(radius * (second ? std::sin(angle) : std::cos(angle)));
}

}  // namespace

Factors::Factors(Stream& stream, AdapterLayout layout)
    : layout_(std::move(layout)),
      stream_(&stream),
      values_(stream, size_t(size()) * sizeof(float)) {
  std::vector<int32_t> rows;
  for (const TrainedTensor& t : layout_.trained)
    rows.insert(rows.end(), t.rows.begin(), t.rows.end());
  if (rows.empty()) return;
  rows_ = Buffer(stream, rows.size() * sizeof(int32_t));
  if (!stream.recording())
    copy_to_device(stream, rows_.data(), rows.data(), int64_t(rows_.bytes()));
}

const int32_t* Factors::device_rows(const AdapterTensor& t) const {
  const int32_t* rows = rows_.as<int32_t>();
  for (size_t i = 0; i < t.index; ++i) rows += layout_.trained[i].rows.size();
  return rows;
}

const LoraModule* Factors::find(const std::string& name) const {
  for (const LoraModule& m : modules()) {
    if (m.linear.name == name) return &m;
  }
  return nullptr;
}

const AdapterTensor* Factors::find_trained(const std::string& name) const {
  for (const AdapterTensor& t : layout_.tensors) {
    if (t.kind == AdapterTensorKind::Base && layout_.owner(t) == name) return &t;
  }
  return nullptr;
}

void Factors::initialize(uint64_t seed, const BaseModel& base) {
  std::vector<float> flat(static_cast<size_t>(size()));
  for (const AdapterTensor& t : layout_.tensors) {
    float* to = flat.data() + t.offset;
    if (t.kind == AdapterTensorKind::Base) {
      const std::string stored = stored_tensor(base.config(), layout_.owner(t));
      const std::vector<int64_t>& rows = layout_.trained[t.index].rows;
      for (int64_t r = 0; r < t.rows; ++r) {
        const int64_t row = rows.empty() ? r : rows[size_t(r)];
        const WeightSlice from = base.slice(stored, {row, row + 1, 0, t.cols});
        for (int64_t i = 0; i < t.cols; ++i)
          to[r * t.cols + i] = load_scalar(from.matrix.data, from.matrix.dtype, i);
      }
    }
    if (t.kind != AdapterTensorKind::LoraA) continue;
    const bool normal = modules()[t.index].linear.role == ModuleRole::Embedding;
    const float bound = 1.0f / std::sqrt(float(t.cols));
    for (int64_t i = 0; i < t.size(); i += 4) {
      const auto words =
          random_words(seed, Purpose::FactorInit, modules()[t.index].site, uint64_t(i / 4));
      for (int64_t j = i; j < std::min(i + 4, t.size()); ++j) {
        const auto k = size_t(j - i);
        to[j] = normal ? normal_of(words[k / 2 * 2], words[k / 2 * 2 + 1], k % 2 == 1)
                       : (2 * uniform01(words[k]) - 1) * bound;
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

AdapterValues Factors::read_values(const float* flat) const {
  AdapterValues host{{}, layout_.trained};
  for (const LoraModule& m : layout_.modules) host.modules.push_back(shapes_of(m));
  for (const AdapterTensor& t : layout_.tensors) {
    values_of(host, t) = host_copy(*stream_, flat + t.offset, t.size());
  }
  return host;
}

void Factors::write_values(float* flat, const AdapterValues& host) {
  assert(host.modules.size() == layout_.modules.size());
  assert(host.trained.size() == layout_.trained.size());
  for (const AdapterTensor& t : layout_.tensors) {
    const std::vector<float>& from = values_of(host, t);
    assert(int64_t(from.size()) == t.size());
    copy_to_device(*stream_, flat + t.offset, from.data(), t.size() * int64_t{sizeof(float)});
  }
}

}  // namespace lorashard
