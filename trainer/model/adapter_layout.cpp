#include "trainer/model/adapter_layout.h"

#include <algorithm>
#include <set>
#include <stdexcept>
#include <tuple>

namespace lorashard {

AdapterModule shapes_of(const LoraModule& m) {
  return {.name = m.linear.name,
          .rank = m.lora_rank * m.linear.experts,
          .in_features = m.linear.in_features,
          .out_features = m.linear.out_features,
          .alpha = m.alpha,
          .experts = m.linear.experts};
}

AdapterLayout adapter_layout(const ModelConfig& model, const std::vector<LinearModule>& modules,
                             const AdapterConfig& config, int tp_rank, int tp_size) {
  AdapterLayout layout;
  layout.config = config;
  std::set<std::string> adapted;
  for (const LinearModule& m : modules) adapted.insert(m.name);
  uint32_t site = 0;
  for (const LinearModule& linear : linear_modules(model)) {
    LoraModule m{.linear = linear, .site = site++};
    if (!adapted.count(linear.name)) continue;
    m.lora_rank = module_rank(config, linear.name);
    m.alpha = module_alpha(config, linear.name);
    m.scaling = float(lora_scaling(config, m.lora_rank, m.alpha));
    const TensorPart part =
        tensor_part(model, linear.split, linear.out_features, linear.in_features, tp_rank, tp_size);
    AdapterModule shapes = shapes_of(m);
    const bool stacked = linear.experts > 1;
    // A dimension of inputs or outputs is cut as its module is; lora_rank is whole.
    const auto local = [&](int64_t AdapterModule::*dimension) {
      if (stacked) return Range{0, shapes.*dimension};
      if (dimension == &AdapterModule::in_features) return Range{part.col_begin, part.col_end};
      if (dimension == &AdapterModule::out_features) return Range{part.row_begin, part.row_end};
      return Range{0, shapes.*dimension};
    };
    for (const AdapterTensorSpec& t : kAdapterTensors) {
      layout.tensors.push_back({.module = layout.modules.size(),
                                .kind = t.kind,
                                .rows = shapes.*t.rows,
                                .cols = shapes.*t.cols,
                                .local_rows = local(t.rows),
                                .local_cols = local(t.cols)});
      AdapterTensor& tensor = layout.tensors.back();
      if (stacked && t.kind == AdapterTensorKind::LoraB) {  // expert by expert
        tensor.rows = linear.out_features * linear.experts;
        tensor.cols = m.lora_rank;
        tensor.local_rows = {0, tensor.rows};
        tensor.local_cols = {0, tensor.cols};
      }
    }
    layout.modules.push_back(std::move(m));
  }
  const auto place = [&](const AdapterTensor& t) {
    const LinearModule& linear = layout.modules[t.module].linear;
    return std::tuple(linear.layer, linear.group, t.kind, t.module);
  };
  std::sort(layout.tensors.begin(), layout.tensors.end(),
            [&](const auto& x, const auto& y) { return place(x) < place(y); });
  for (AdapterTensor& t : layout.tensors) {
    t.offset = layout.size;
    layout.size += t.size();
    LoraModule& m = layout.modules[t.module];
    (t.kind == AdapterTensorKind::LoraA ? m.a : m.b) = t;
  }
  for (size_t i = 1; i < layout.modules.size(); ++i) {
    const LoraModule &before = layout.modules[i - 1], &m = layout.modules[i];
    if (m.linear.layer == before.linear.layer && m.linear.group == before.linear.group &&
        m.a.offset != before.a.offset + before.a.size())
      throw std::logic_error("adapter_layout: A of " + m.linear.name + " stands apart");
  }
  return layout;
}

}  // namespace lorashard
