#include "trainer/model/weight_layout.h"

#include <set>
#include <string>

namespace lorashard {
namespace {

// Of a tensor's and a slice's begin: vector loads and GEMMs find their operands aligned.
constexpr int64_t kAlign = 32;

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

int64_t elements(const TensorPart& p) {
  return (p.row_end - p.row_begin) * (p.col_end - p.col_begin);
}

// Replicated tensors of which each tensor-parallel rank forms a part of the gradient: the norms of
// its own heads.
std::set<std::string> norms_of_heads(const ModelConfig& config) {
  std::set<std::string> names;
  for (int64_t l = 0; l < config.layers; ++l) {
    for (const LayerModule& m : layer_modules(config, l)) {
      if (m.kind == LayerModule::Kind::Norm &&
          (m.role == NormRole::Query || m.role == NormRole::Key))
        names.insert(layer_prefix(config, l) + m.name + ".weight");
    }
  }
  return names;
}

}  // namespace

WeightLayout weight_layout(const ModelConfig& config, int tp_rank, int tp_size, int dp_size) {
  WeightLayout layout;
  const std::set<std::string> of_heads = norms_of_heads(config);
  for (const TensorSpec& spec : model_tensors(config)) {
    WeightTensor t{.spec = spec, .part = {}, .held = {}};
    int64_t held_by_all = 0;
    for (int r = 0; r < tp_size; ++r) {
      const TensorPart part = tensor_part(config, spec.split, spec.rows, spec.cols, r, tp_size);
      held_by_all += elements(part);
      if (r == tp_rank) t.part = part;
    }
    const TensorPart whole{0, spec.rows, 0, spec.cols};
    const bool shared = held_by_all != elements(whole) || spec.split == Split::None;
    t.section = shared ? WeightSectionKind::Shared : WeightSectionKind::Own;
    t.held = shared ? whole : t.part;
    t.adds_gradient = tp_rank == 0 || spec.split != Split::None || of_heads.count(spec.name) > 0;
    layout.tensors.push_back(std::move(t));
  }
  for (const auto kind : {WeightSectionKind::Own, WeightSectionKind::Shared}) {
    WeightSection& section = layout.sections[kind];
    section.begin = layout.size;
    section.slices = kind == WeightSectionKind::Own ? dp_size : dp_size * tp_size;
    for (const bool vectors : {false, true}) {
      if (vectors) section.vectors = layout.size;
      for (WeightTensor& t : layout.tensors) {
        if (t.section != kind || t.spec.vector != vectors) continue;
        t.offset = layout.size;
        layout.size += round_up(elements(t.held), kAlign);
      }
    }
    section.size = round_up(layout.size - section.begin, kAlign * section.slices);
    layout.size = section.begin + section.size;
  }
  return layout;
}

Matrix part_of(const WeightTensor& t, void* flat, DType type) {
  char* at = static_cast<char*>(flat) + t.offset * size_of(type);
  return matrix(at, t.held_rows(), t.held_cols(), type)
      .block(t.part.row_begin - t.held.row_begin, t.part.row_end - t.part.row_begin,
             t.part.col_begin - t.held.col_begin, t.part.col_end - t.part.col_begin);
}

}  // namespace lorashard
