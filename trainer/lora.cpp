#include "trainer/lora.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <map>

#include "configs/error.h"
#include "kernels/adamw.h"
#include "kernels/random.h"
#include "kernels/transfer.h"

namespace lorashard {
Factors::Factors(Stream& stream, const ModelConfig& model, const std::vector<LinearModule>& modules,
                 const AdapterConfig& config, int tp_rank, int tp_size, int64_t tail)
    : config_(config), tail_(tail), stream_(&stream) {
  std::map<std::string, uint32_t> sites;
  for (const LinearModule& m : linear_modules(model)) {
    sites.emplace(m.name, uint32_t(sites.size()));
  }
  for (const LinearModule& linear : modules) {
    LoraModule m;
    m.linear = linear;
    m.rank = module_rank(config, linear.name);
    m.alpha = module_alpha(config, linear.name);
    m.scaling = float(lora_scaling(config, m.rank, m.alpha));
    m.site = sites.at(linear.name);
    const TensorPart part =
        tensor_part(model, linear.split, linear.out_features, linear.in_features, tp_rank, tp_size);
    m.a_cols = {part.col_begin, part.col_end};
    m.b_rows = {part.row_begin, part.row_end};
    modules_.push_back(std::move(m));
  }
  std::sort(modules_.begin(), modules_.end(),
            [](const LoraModule& x, const LoraModule& y) { return x.site < y.site; });
  for (size_t begin = 0; begin < modules_.size();) {
    size_t end = begin;
    while (end < modules_.size() && modules_[end].linear.layer == modules_[begin].linear.layer &&
           modules_[end].linear.group == modules_[begin].linear.group) {
      ++end;
    }
    for (size_t i = begin; i < end; ++i) {
      modules_[i].a_offset = size_;
      size_ += modules_[i].rank * modules_[i].linear.in_features;
    }
    for (size_t i = begin; i < end; ++i) {
      modules_[i].b_offset = size_;
      size_ += modules_[i].rank * modules_[i].linear.out_features;
    }
    begin = end;
  }
  const auto bytes = [](int64_t floats) { return size_t(floats) * sizeof(float); };
  values_ = Buffer(stream, bytes(size_));
  gradients_ = Buffer(stream, bytes(squares_offset() + 2));
  first_moments_ = Buffer(stream, bytes(size_));
  second_moments_ = Buffer(stream, bytes(size_));
  stream.reserve_for([&] { sum_of_squares(stream, squares(), gradients(), size_); });
}

const LoraModule* Factors::find(const std::string& name) const {
  for (const LoraModule& m : modules_) {
    if (m.linear.name == name) return &m;
  }
  return nullptr;
}

void Factors::initialize(uint64_t seed) {
  std::vector<float> flat(static_cast<size_t>(size_));
  for (const LoraModule& m : modules_) {
    const float bound = 1.0f / std::sqrt(float(m.linear.in_features));
    float* a = flat.data() + m.a_offset;
    const int64_t n = m.rank * m.linear.in_features;
    for (int64_t i = 0; i < n; i += 4) {
      const auto words = random_words(seed, Purpose::FactorInit, m.site, uint64_t(i / 4));
      for (int64_t j = i; j < std::min(i + 4, n); ++j) {
        a[j] = (2 * uniform01(words[size_t(j - i)]) - 1) * bound;
      }
    }
  }
  write(values(), flat);
}

std::vector<float> Factors::read(const float* flat) const {
  return host_copy(*stream_, flat, size_);
}

void Factors::write(float* flat, const std::vector<float>& host) {
  assert(int64_t(host.size()) == size_);
  copy_to_device(*stream_, flat, host.data(), size_ * int64_t{sizeof(float)});
}

void Factors::load(const Adapter& adapter) {
  std::map<std::string, const AdapterModule*> by_name;
  for (const AdapterModule& m : adapter.modules) by_name.emplace(m.name, &m);
  std::vector<float> flat(static_cast<size_t>(size_));
  for (const LoraModule& m : modules_) {
    const auto found = by_name.find(m.linear.name);
    assert(found != by_name.end());
    const AdapterModule& from = *found->second;
    assert(from.rank == m.rank);
    std::copy(from.a.begin(), from.a.end(), flat.begin() + m.a_offset);
    std::copy(from.b.begin(), from.b.end(), flat.begin() + m.b_offset);
  }
  write(values(), flat);
}

Adapter Factors::to_adapter() const {
  Adapter adapter;
  adapter.config = config_;
  const std::vector<float> flat = read(values());
  for (const LoraModule& m : modules_) {
    AdapterModule out;
    out.name = m.linear.name;
    out.rank = m.rank;
    out.in_features = m.linear.in_features;
    out.out_features = m.linear.out_features;
    out.alpha = m.alpha;
    const float *a = flat.data() + m.a_offset, *b = flat.data() + m.b_offset;
    out.a.assign(a, a + m.rank * m.linear.in_features);
    out.b.assign(b, b + m.rank * m.linear.out_features);
    adapter.modules.push_back(std::move(out));
  }
  return adapter;
}

}  // namespace lorashard
