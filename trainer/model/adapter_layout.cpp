#include "trainer/model/adapter_layout.h"

#include <algorithm>
#include <set>
#include <stdexcept>
#include <tuple>

namespace lorashard {
namespace {

// Of a vector (n) of a module's outputs: of one that all ranks have whole an equal part, of a block
// what the rank before has not.
Range share_of_outputs(const ModelConfig& model, Split split, int64_t n, int tp_rank, int tp_size) {
  if (split == Split::None || is_row_parallel(split)) return split_features(n, tp_rank, tp_size);
  const Range block = split_ranges(model, split, n, tp_rank, tp_size).front();
  if (tp_rank == 0) return block;
  const int64_t before = split_ranges(model, split, n, tp_rank - 1, tp_size).front().end;
  return {std::max(block.begin, before), std::max(block.end, before)};
}

}  // namespace

AdapterModule shapes_of(const LoraModule& m) {
  return {.name = m.linear.name,
          .rank = m.lora_rank,
          .in_features = m.linear.in_features,
          .out_features = m.linear.out_features,
          .alpha = m.alpha,
          .dora = m.dora,
          .embedding = m.linear.role == ModuleRole::Embedding};
}

const std::string& AdapterLayout::owner(const AdapterTensor& t) const {
  return t.kind == AdapterTensorKind::Base ? trained[t.index].base.name
                                           : modules[t.index].linear.name;
}

AdapterLayout adapter_layout(const ModelConfig& model, const std::vector<LinearModule>& modules,
                             const AdapterConfig& config, int tp_rank, int tp_size) {
  AdapterLayout layout;
  layout.config = config;
  std::set<std::string> adapted;
  for (const LinearModule& m : modules) adapted.insert(m.name);
  uint32_t site = 0;
  for (const LinearModule& linear : lora_modules(model)) {
    LoraModule m{.linear = linear, .dora = config.use_dora, .site = site++};
    if (!adapted.count(linear.name)) continue;
    m.lora_rank = module_rank(config, linear.name);
    m.alpha = module_alpha(config, linear.name);
    m.scaling = float(lora_scaling(config, m.lora_rank, m.alpha));
    const AdapterModule shapes = shapes_of(m);
    // A dimension of inputs or outputs is cut as its module is; lora_rank is whole.
    const auto local = [&](AdapterDim dim) {
      const int64_t n = dim_of(shapes, dim);
      const bool cut = dim == (is_row_parallel(linear.split) ? AdapterDim::In : AdapterDim::Out);
      return cut ? split_ranges(model, linear.split, n, tp_rank, tp_size)
                 : std::vector{Range{0, n}};
    };
    for (const AdapterTensorSpec& t : kAdapterTensors) {
      if (!has_tensor(shapes, t)) continue;
      AdapterTensor tensor{.kind = t.kind,
                           .index = layout.modules.size(),
                           .rows = dim_of(shapes, t.rows),
                           .cols = dim_of(shapes, t.cols),
                           .local_rows = local(t.rows),
                           .local_cols = local(t.cols),
                           .share = {}};
      if (t.cols == AdapterDim::Out)
        tensor.share = share_of_outputs(model, linear.split, tensor.cols, tp_rank, tp_size);
      layout.tensors.push_back(tensor);
    }
    layout.modules.push_back(std::move(m));
  }
  const auto place = [&](const AdapterTensor& t) {
    const LinearModule& linear = layout.modules[t.index].linear;
    return std::tuple(t.kind, linear.layer, linear.group, t.index);
  };
  std::sort(layout.tensors.begin(), layout.tensors.end(),
            [&](const auto& x, const auto& y) { return place(x) < place(y); });
  layout.trained = trained_tensors(model_tensors(model), config, modules);
  for (size_t i = 0; i < layout.trained.size(); ++i) {
    const TensorSpec& base = layout.trained[i].base;
    AdapterTensor tensor{.kind = AdapterTensorKind::Base,
                         .index = i,
                         .rows = base.rows,
                         .cols = base.cols,
                         .local_rows = {},
                         .local_cols = {}};
    // A matrix is cut by rows, a vector in one or more pieces.
    for (const TensorPart& part : tensor_parts(model, base, tp_rank, tp_size)) {
      if (!base.vector || tensor.local_rows.empty())
        tensor.local_rows.push_back({part.row_begin, part.row_end});
      if (base.vector || tensor.local_cols.empty())
        tensor.local_cols.push_back({part.col_begin, part.col_end});
    }
    if (base.vector)
      tensor.share = share_of_outputs(model, base.split, base.cols, tp_rank, tp_size);
    layout.tensors.push_back(tensor);
  }
  for (AdapterTensor& t : layout.tensors) {
    t.offset = layout.size;
    layout.size += t.size();
    if (t.kind == AdapterTensorKind::Base) continue;
    LoraModule& m = layout.modules[t.index];
    (t.kind == AdapterTensorKind::LoraA   ? m.a
     : t.kind == AdapterTensorKind::LoraB ? m.b
                                          : m.magnitude) = t;
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
