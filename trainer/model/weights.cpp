#include "trainer/model/weights.h"

#include <algorithm>
#include <map>

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

// What an adapter has for embedding and head themselves.
void attach_vocabulary(ModelWeights& w, const Factors* factors, float* gradients) {
  Linear& head = w.head.linears[0];
  w.embedding = w.base_embedding;
  head.weight = w.base_head;
  w.embedding_lora = nullptr;
  w.embedding_gradient = head.weight_gradient = {};
  w.embedding_tokens = w.head_tokens = {};
  w.lora_trains = gradients != nullptr;
  if (!factors) return;
  w.embedding_lora = factors->find(w.embedding_name);
  for (const AdapterTensor& t : factors->layout().tensors) {
    if (t.kind != AdapterTensorKind::Base) continue;
    const TrainedTensor& trained = factors->layout().trained[t.index];
    const bool of_embedding = trained.base.name == w.embedding_name + ".weight";
    const bool of_head = trained.tied || trained.base.name == "lm_head.weight";
    const Matrix values = local_block(t, factors->values());
    const Matrix gradient = gradients ? local_block(t, gradients) : Matrix{};
    if (!trained.rows.empty()) {
      const TokenRows rows{values, gradient, factors->device_rows(t), &trained.rows};
      if (of_embedding) w.embedding_tokens = rows;
      if (of_head) w.head_tokens = rows;
      continue;
    }
    if (of_embedding) {
      w.embedding = {values};
      w.embedding_gradient = gradient;
    }
    if (of_head) {
      head.weight = {values};
      head.weight_gradient = gradient;
    }
  }
}

}  // namespace

int32_t TokenRows::find(int32_t token) const {
  if (!ids) return -1;
  const auto found = std::find(ids->begin(), ids->end(), token);
  return found == ids->end() ? -1 : int32_t(found - ids->begin());
}

bool ModelWeights::trains_embedding() const {
  return embedding_gradient || embedding_tokens.gradient || (embedding_lora && lora_trains);
}

bool LinearGroup::trained() const {
  return std::any_of(linears.begin(), linears.end(), [](const Linear& l) { return l.trained(); });
}

bool LinearGroup::needs_input() const {
  return adapted() || std::any_of(linears.begin(), linears.end(),
                                  [](const Linear& l) { return bool(l.weight_gradient); });
}

bool BlockWeights::trains_norm() const {
  return std::any_of(norm_gradients.begin(), norm_gradients.end(),
                     [](const Matrix& gradient) { return bool(gradient); });
}

bool BlockWeights::trained() const {
  return trains_norm() ||
         std::any_of(groups.begin(), groups.end(), [](const auto& g) { return g.trained(); });
}

ModelWeights arrange_weights(const ModelConfig& config, int tp_rank, int tp_size,
                             const TensorSource& source) {
  std::map<std::string, std::vector<ConstMatrix>> tensors;
  for (const TensorSpec& spec : model_tensors(config)) {
    std::vector<ConstMatrix>& pieces = tensors[spec.name];
    const auto parts = tensor_parts(config, spec, tp_rank, tp_size);
    if (parts.size() == 1 || tp_size > 1) {
      for (const TensorPart& part : parts) pieces.push_back(source(spec, part));
      continue;
    }
    // All of it: where it lies, without a copy.
    const ConstMatrix whole = source(spec, {0, spec.rows, 0, spec.cols});
    for (const TensorPart& p : parts) {
      pieces.push_back(
          whole.block(p.row_begin, p.row_end - p.row_begin, p.col_begin, p.col_end - p.col_begin));
    }
  }
  const auto get = [&](const std::string& name, size_t piece = 0) {
    const auto found = tensors.find(name);
    return found == tensors.end() ? ConstMatrix{} : found->second.at(piece);
  };
  const auto outer = [&](const char* name, const char* tensor) {
    return get(outer_name(config, name) + tensor);
  };
  ModelWeights w;
  w.embedding_name = outer_name(config, config.names.embedding);
  w.base_embedding = w.embedding = {outer(config.names.embedding, ".weight")};
  if (config.names.positions) w.positions = {outer(config.names.positions, ".weight")};
  w.base_head = {get(stored_tensor(config, "lm_head.weight"))};
  Linear& head = w.head.linears.emplace_back();
  head.name = "lm_head";
  head.weight = w.base_head;
  w.vocabulary = split_features(config.vocab_size, tp_rank, tp_size);
  w.final_norm = {outer(config.names.final_norm, ".weight"),
                  outer(config.names.final_norm, ".bias")};
  w.heads = split_heads(config.heads, config.kv_heads, tp_rank, tp_size);
  w.features = split_features(config.intermediate_size, tp_rank, tp_size);
  for (int64_t l = 0; l < config.layers; ++l) {
    BlockWeights& b = w.blocks.emplace_back();
    b.window = config.layer_window[size_t(l)];
    b.attention_scale = config.attention_scale / float(config.attention_scale_by_layer ? l + 1 : 1);
    for (const LayerModule& m : layer_modules(config, l)) {
      const std::string name = layer_prefix(config, l) + m.name;
      if (m.kind == LayerModule::Kind::Norm) {
        b.norms[m.role] = {get(name + ".weight"), get(name + ".bias")};
        continue;
      }
      LinearGroup& group = b.groups[m.group];
      for (size_t piece = 0; piece < tensors.at(name + ".weight").size(); ++piece) {
        const ConstMatrix bias = get(name + ".bias", m.bias ? piece : 0);
        group.linears.push_back({.name = name,
                                 .weight = {get(name + ".weight", piece), m.transposed},
                                 .bias = bias,
                                 .piece = piece,
                                 .base_bias = bias});
      }
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

void attach_factors(ModelWeights& weights, const Factors* factors, float* gradients) {
  const auto attach = [&](LinearGroup& group) {
    group.lora_rank = 0;
    for (Linear& linear : group.linears) {
      linear.lora = factors ? factors->find(linear.name) : nullptr;
      linear.dora = {};
      linear.trained_bias =
          factors && linear.base_bias ? factors->find_trained(linear.name + ".bias") : nullptr;
      linear.bias = linear.trained_bias
                        ? local_block(*linear.trained_bias, factors->values(), linear.piece)
                        : linear.base_bias;
      if (!linear.lora) continue;
      if (linear.piece == 0) group.lora_rank += linear.lora->lora_rank;
      linear.u_column = group.lora_rank - linear.lora->lora_rank;
    }
  };
  for (BlockWeights& b : weights.blocks) {
    for (LinearGroup& group : b.groups) attach(group);
  }
  attach(weights.head);
  attach_vocabulary(weights, factors, gradients);
}

void attach_gradients(ModelWeights& weights, const ModelConfig& config,
                      const GradientPlace& place) {
  weights.embedding_gradient = place(weights.embedding_name + ".weight");
  weights.head.linears[0].weight_gradient =
      config.tied_embeddings ? weights.embedding_gradient : place("lm_head.weight");
  weights.final_norm_gradient = place(outer_name(config, config.names.final_norm) + ".weight");
  for (int64_t l = 0; l < config.layers; ++l) {
    BlockWeights& b = weights.blocks[size_t(l)];
    for (const LayerModule& m : layer_modules(config, l)) {
      if (m.kind == LayerModule::Kind::Norm)
        b.norm_gradients[m.role] = place(layer_prefix(config, l) + m.name + ".weight");
    }
    for (LinearGroup& group : b.groups) {
      for (Linear& linear : group.linears) {
        linear.weight_gradient = place(linear.name + ".weight");
        if (linear.bias) linear.bias_gradient = place(linear.name + ".bias");
      }
    }
  }
}

}  // namespace lorashard
