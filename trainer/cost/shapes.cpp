#include "trainer/cost/shapes.h"

#include <algorithm>
#include <map>

#include "parallel/shard.h"
#include "trainer/loss.h"

namespace lorashard {
namespace {

// The weights as plan_activations looks at them: ranks of adapted groups alone.
std::vector<BlockWeights> without_data(const std::vector<BlockShape>& blocks) {
  std::vector<BlockWeights> weights(blocks.size());
  for (size_t l = 0; l < blocks.size(); ++l) {
    for (const InputGroup g : kInputGroups)
      weights[l].groups[g].lora_rank = blocks[l].groups[g].rank_sum;
  }
  return weights;
}

ActivationDims activation_dims(const TrainingJob& job, int rank,
                               const std::vector<BlockShape>& blocks) {
  const ModelConfig& c = job.model;
  const HeadSplit heads = split_heads(c.heads, c.kv_heads, rank, job.tensor);
  ActivationDims d;
  d.tokens = job.micro_batch * job.sequence;
  d.hidden = c.hidden_size;
  d.heads = heads.query.size();
  d.kv_heads = heads.kv.size();
  d.q_width = d.heads * c.head_dim;
  d.kv_width = d.kv_heads * c.head_dim;
  d.features = split_features(c.intermediate_size, rank, job.tensor).size();
  d.qk_norm = c.qk_norm;
  d.backward = true;
  d.type = job.activation_type;
  d.layers = c.layers;
  while (d.first_layer < d.layers && !blocks[size_t(d.first_layer)].adapted()) ++d.first_layer;
  return d;
}

}  // namespace

bool BlockShape::adapted() const {
  return std::any_of(groups.begin(), groups.end(), [](const auto& g) { return g.adapted(); });
}

std::vector<AdaptedLinear> adapted_linears(const std::vector<LinearModule>& modules,
                                           const AdapterConfig& config) {
  std::vector<AdaptedLinear> adapted;
  for (const LinearModule& m : modules) adapted.push_back({m, module_rank(config, m.name)});
  return adapted;
}

RankShape rank_shape(const TrainingJob& job, int tensor_rank) {
  const ModelConfig& c = job.model;
  RankShape shape;
  shape.blocks.resize(size_t(c.layers));
  std::map<std::string, int64_t> ranks;
  for (const AdaptedLinear& a : job.adapted) {
    ranks[a.linear.name] = a.rank;
    shape.factor_elements +=
        adapter_elements({a.linear.name, a.rank, a.linear.in_features, a.linear.out_features, 0});
  }
  for (int64_t l = 0; l < c.layers; ++l) {
    for (const LayerModule& m : layer_modules(c, l)) {
      if (m.kind != LayerModule::Kind::Linear) continue;
      GroupShape& group = shape.blocks[size_t(l)].groups[m.group];
      const TensorPart part =
          tensor_part(c, m.split, m.out_features, m.in_features, tensor_rank, job.tensor);
      const auto found = ranks.find(layer_prefix(l) + m.name);
      const int64_t rank = found == ranks.end() ? 0 : found->second;
      group.linears.push_back({part.row_end - part.row_begin, part.col_end - part.col_begin, rank});
      group.rank_sum += rank;
      group.bias = m.bias;
    }
  }
  for (size_t l = 0; l < shape.blocks.size(); ++l) {
    shape.blocks[l].window = c.layer_window.empty() ? 0 : c.layer_window[l];
  }
  for (const TensorSpec& t : model_tensors(c)) {
    const TensorPart p = tensor_part(c, t.split, t.rows, t.cols, tensor_rank, job.tensor);
    shape.base_bytes += double((p.row_end - p.row_begin) * (p.col_end - p.col_begin)) *
                        double(size_of(job.base_type));
  }
  shape.dims = activation_dims(job, tensor_rank, shape.blocks);
  shape.vocabulary = split_features(c.vocab_size, tensor_rank, job.tensor).size();
  shape.ranks = job.tensor;
  shape.chunk_rows = loss_chunk_rows(c.vocab_size, job.tensor, shape.dims.tokens);
  return shape;
}

ArenaBytes arena_bytes(const RankShape& shape, KeptLayers kept) {
  ActivationDims d = shape.dims;
  d.kept = kept;
  Arena arena;
  const Activations plan = plan_activations(arena, d, without_data(shape.blocks));
  ArenaBytes bytes;
  bytes.activations = double(arena.used());
  arena.back_to(plan.shared_at);
  plan_loss(arena, {d.tokens, d.hidden, shape.chunk_rows, shape.vocabulary, shape.ranks, d.type});
  bytes.loss = double(arena.used()) - bytes.activations;
  return bytes;
}

KeptLayers kept_layers(const RankShape& shape, Recompute recompute, double budget) {
  return kept_layers(shape.dims.layers - shape.dims.first_layer, recompute, [&](KeptLayers kept) {
    return budget <= 0 || arena_bytes(shape, kept).total() <= budget;
  });
}

}  // namespace lorashard
