#include "trainer/model/weights.h"

#include <algorithm>
#include <map>

#include "checkpoint/expert_names.h"
#include "kernels/transfer.h"

namespace lorashard {
namespace {

// A slice on the stream's device: where the base holds it, or copied.
ConstMatrix on_device(Stream& stream, WeightSlice slice,
                      std::vector<std::shared_ptr<const void>>& owners) {
  if (stream.backend() == Backend::CPU) {
    owners.push_back(std::move(slice.owner));
    return slice.matrix;
  }
  const ConstMatrix& from = slice.matrix;
  auto memory =
      std::make_shared<Buffer>(stream, size_t(from.rows * from.cols * size_of(from.dtype)));
  const Matrix to = matrix(memory->data(), from.rows, from.cols, from.dtype);
  copy_matrix_to_device(stream, to, from);
  owners.push_back(std::move(memory));
  return to;
}

}  // namespace

bool BlockWeights::adapted() const {
  return std::any_of(groups.begin(), groups.end(), [](const auto& g) { return g.adapted(); });
}

ModelWeights arrange_weights(const ModelConfig& config, int tp_rank, int tp_size,
                             const TensorSource& source) {
  std::map<std::string, ConstMatrix> tensors;
  for (const TensorSpec& spec : model_tensors(config)) {
    tensors[spec.name] =
        source(spec, tensor_part(config, spec.split, spec.rows, spec.cols, tp_rank, tp_size));
  }
  const auto get = [&](const std::string& name) {
    const auto found = tensors.find(name);
    return found == tensors.end() ? ConstMatrix{} : found->second;
  };
  ModelWeights w;
  w.embedding = {get("model.embed_tokens.weight")};
  w.head = config.tied_embeddings ? w.embedding : FrozenWeight{get("lm_head.weight")};
  w.vocabulary = split_features(config.vocab_size, tp_rank, tp_size);
  w.final_norm = get("model.norm.weight");
  w.heads = split_heads(config.heads, config.kv_heads, tp_rank, tp_size);
  w.features = split_features(config.intermediate_size, tp_rank, tp_size);
  for (int64_t l = 0; l < config.layers; ++l) {
    BlockWeights& b = w.blocks.emplace_back();
    b.layer = int(l);
    b.window = config.layer_window[size_t(l)];
    for (const LayerModule& m : layer_modules(config, l)) {
      const std::string name = layer_prefix(l) + m.name;
      if (m.kind == LayerModule::Kind::Norm) {
        b.norms[m.role] = get(name + ".weight");
        continue;
      }
      const FrozenWeight weight{get(name + ".weight")};
      if (m.expert >= 0) {
        b.experts.experts.resize(size_t(config.experts));
        b.experts.per_token = config.experts_per_token;
        b.experts.features = split_features(config.expert_size, tp_rank, tp_size);
        Expert& e = b.experts.experts[size_t(m.expert)];
        (m.group == InputGroup::Down     ? e.down
         : m.name.ends_with("gate_proj") ? e.gate
                                         : e.up) = weight;
        continue;
      }
      LinearGroup& group = b.groups[m.group];
      group.linears.push_back({m.group == InputGroup::Router ? parameter_name(name) : name, weight,
                               get(name + ".bias"), nullptr});
      group.row_parallel = is_row_parallel(m.split);
    }
  }
  return w;
}

ModelWeights load_weights(Stream& stream, const BaseModel& base, int tp_rank, int tp_size,
                          const Factors* factors) {
  std::vector<std::shared_ptr<const void>> owners;
  ModelWeights w = arrange_weights(base.config(), tp_rank, tp_size,
                                   [&](const TensorSpec& spec, const TensorPart& part) {
                                     return on_device(stream, base.slice(spec.name, part), owners);
                                   });
  w.owners = std::move(owners);
  attach_factors(w, factors);
  return w;
}

void attach_factors(ModelWeights& weights, const Factors* factors) {
  const auto experts_of = [&](const BlockWeights& b, InputGroup group) -> const LoraModule* {
    if (!factors || !b.experts) return nullptr;
    for (const LoraModule& m : factors->modules())
      if (m.linear.group == group && m.linear.parameter && m.linear.layer == b.layer) return &m;
    return nullptr;
  };
  for (BlockWeights& b : weights.blocks) {
    for (LinearGroup& group : b.groups) {
      group.lora_rank = 0;
      for (Linear& linear : group.linears) {
        linear.lora = factors ? factors->find(linear.name) : nullptr;
        if (linear.lora) group.lora_rank += linear.lora->lora_rank;
      }
    }
    b.experts.gate_up = experts_of(b, InputGroup::GateUp);
    b.experts.down = experts_of(b, InputGroup::Down);
    for (const LoraModule* m : {b.experts.gate_up, b.experts.down})
      if (m) b.groups[m->linear.group].lora_rank = m->lora_rank * b.experts.per_token;
  }
}

}  // namespace lorashard
