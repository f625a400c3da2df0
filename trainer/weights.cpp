#include "trainer/weights.h"

#include <map>

#include "kernels/transfer.h"

namespace lorashard {
namespace {

// Layer-relative names of the linear layers, in the order of linear_modules().
const char* const kGroups[4][3] = {{"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"},
                                   {"self_attn.o_proj", nullptr, nullptr},
                                   {"mlp.gate_proj", "mlp.up_proj", nullptr},
                                   {"mlp.down_proj", nullptr, nullptr}};

LinearGroup BlockWeights::*const kMembers[4] = {&BlockWeights::qkv, &BlockWeights::o,
                                                &BlockWeights::gate_up, &BlockWeights::down};

std::string layer_name(int64_t layer) { return "model.layers." + std::to_string(layer) + "."; }

// A slice on the stream's device: where the base holds it, or copied.
ConstMatrix on_device(Stream& stream, WeightSlice slice, ModelWeights& weights) {
  if (stream.backend() == Backend::CPU) {
    weights.owners.push_back(std::move(slice.owner));
    return slice.matrix;
  }
  const ConstMatrix& from = slice.matrix;
  auto memory =
      std::make_shared<Buffer>(stream, size_t(from.rows * from.cols * size_of(from.dtype)));
  const Matrix to = matrix(memory->data(), from.rows, from.cols, from.dtype);
  copy_matrix_to_device(stream, to, from);
  weights.owners.push_back(std::move(memory));
  return to;
}

}  // namespace

ModelWeights load_weights(Stream& stream, const BaseModel& base, int tp_rank, int tp_size,
                          const Factors* factors) {
  const ModelConfig& config = base.config();
  ModelWeights w;
  std::map<std::string, ConstMatrix> loaded;
  for (const TensorSpec& spec : model_tensors(config)) {
    const TensorPart part = tensor_part(config, spec.split, spec.rows, spec.cols, tp_rank, tp_size);
    loaded[spec.name] = on_device(stream, base.slice(spec.name, part), w);
  }
  const auto get = [&](const std::string& name) {
    const auto found = loaded.find(name);
    return found == loaded.end() ? ConstMatrix{} : found->second;
  };
  w.embedding = get("model.embed_tokens.weight");
  w.head = config.tied_embeddings ? w.embedding : get("lm_head.weight");
  w.vocabulary = split_features(config.vocab_size, tp_rank, tp_size);
  w.final_norm = get("model.norm.weight");
  w.heads = split_heads(config.heads, config.kv_heads, tp_rank, tp_size);
  w.features = split_features(config.intermediate_size, tp_rank, tp_size);
  for (int64_t l = 0; l < config.layers; ++l) {
    const std::string prefix = layer_name(l);
    BlockWeights b;
    b.input_norm = get(prefix + "input_layernorm.weight");
    b.post_norm = get(prefix + "post_attention_layernorm.weight");
    b.q_norm = get(prefix + "self_attn.q_norm.weight");
    b.k_norm = get(prefix + "self_attn.k_norm.weight");
    b.window = config.layer_window.empty() ? 0 : config.layer_window[size_t(l)];
    for (int g = 0; g < 4; ++g) {
      for (const char* name : kGroups[g]) {
        if (!name) continue;
        Linear linear;
        linear.weight = get(prefix + name + ".weight");
        linear.bias = get(prefix + name + ".bias");
        (b.*kMembers[g]).linears.push_back(linear);
      }
    }
    w.blocks.push_back(std::move(b));
  }
  attach_factors(w, config, factors);
  return w;
}

void attach_factors(ModelWeights& weights, const ModelConfig& config, const Factors* factors) {
  for (int64_t l = 0; l < config.layers; ++l) {
    for (int g = 0; g < 4; ++g) {
      LinearGroup& group = weights.blocks[size_t(l)].*kMembers[g];
      group.rank_sum = 0;
      for (size_t i = 0; i < group.linears.size(); ++i) {
        const LoraModule* m = factors ? factors->find(layer_name(l) + kGroups[g][i]) : nullptr;
        group.linears[i].lora = m;
        if (m) group.rank_sum += m->rank;
      }
    }
  }
}

}  // namespace lorashard
