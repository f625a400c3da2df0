#include "checkpoint/base_inspect.h"

#include <algorithm>
#include <map>
#include <sstream>

#include "checkpoint/base_storage.h"

namespace lorashard {
namespace {

template <class... Parts>
std::string joined(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

// 1234567 as "1,234,567".
std::string grouped(uint64_t n) {
  std::string s = std::to_string(n);
  for (size_t at = s.size(); at > 3;) s.insert(at -= 3, 1, ',');
  return s;
}

std::string describe(const RopeConfig& r) {
  switch (r.kind) {
    case RopeConfig::Kind::Default:
      return joined("theta ", r.theta);
    case RopeConfig::Kind::Linear:
      return joined("theta ", r.theta, ", linear scaling by ", r.factor);
    case RopeConfig::Kind::Llama3:
      return joined("theta ", r.theta, ", llama3 scaling by ", r.factor, " (frequency factors ",
                    r.low_freq_factor, " and ", r.high_freq_factor, ", trained on ",
                    r.original_max_position_embeddings, " positions)");
  }
  return "";
}

const char* describe(Activation a) {
  switch (a) {
    case Activation::SILU:
      return "silu";
    case Activation::GELU:
      return "gelu";
    case Activation::GELU_TANH:
      return "gelu (tanh)";
  }
  return "";
}

std::string biases(const ModelConfig& c) {
  std::string text;
  const auto add = [&](bool present, const char* name) {
    if (present) text += (text.empty() ? "" : ", ") + std::string(name);
  };
  add(c.qkv_bias, "q, k, v");
  add(c.o_bias, "o");
  add(c.mlp_bias, "gate, up, down");
  return text.empty() ? "none" : text;
}

// "sliding window: 512 tokens in 15 of 18 layers", empty if no layer has one. One size for all.
std::string windows(const ModelConfig& c) {
  int64_t size = 0, count = 0;
  for (const int64_t w : c.layer_window) {
    size = std::max(size, w);
    count += w != 0;
  }
  if (count == 0) return "";
  return joined("sliding window: ", size, " tokens in ", count, " of ", c.layers, " layers");
}

}  // namespace

std::vector<std::string> inspect_base(const std::string& path, Communicator& world) {
  const auto base = BaseModel::open(path);
  const std::string digest = base->digest(world);
  const ModelConfig& c = base->config();
  std::vector<std::string> lines;
  if (base->is_shard_set()) {
    const BaseShardManifest& m = *base->storage().manifest;
    lines.push_back(
        joined("kind: base shard set, written for tensor-parallel degree ", m.tensor_parallel()));
  } else {
    lines.push_back("kind: Hugging Face model");
  }
  lines.push_back(joined("architecture: ", c.architecture));
  lines.push_back(joined("layers: ", c.layers, ", hidden size ", c.hidden_size, ", feed-forward ",
                         c.intermediate_size, " (", describe(c.activation), ")"));
  if (c.experts > 0)
    lines.push_back(joined("experts: ", c.experts, " of width ", c.expert_size, ", ",
                           c.experts_per_token, " for each token, in ",
                           std::count(c.expert_layers.begin(), c.expert_layers.end(), true),
                           " of the layers"));
  lines.push_back(joined("attention: ", c.heads, " query heads, ", c.kv_heads,
                         " key/value heads of ", c.head_dim,
                         c.qk_norm ? ", query and key norms" : "",
                         c.post_norms ? ", norms of the sublayers' outputs" : ""));
  if (const std::string text = windows(c); !text.empty()) lines.push_back(text);
  lines.push_back(joined("rotary embedding: ", describe(c.rope), ", up to ",
                         c.max_position_embeddings, " positions"));
  if (c.window_rope)
    lines.push_back(joined("rotary embedding of windowed layers: ", describe(*c.window_rope)));
  lines.push_back(joined("biases: ", biases(c)));
  lines.push_back(
      joined("vocabulary: ", c.vocab_size, ", embeddings ", c.tied_embeddings ? "tied" : "untied"));
  uint64_t weights = 0, bytes = 0;
  std::map<std::string, uint64_t> by_dtype;
  for (const BaseModel::Tensor& t : base->tensors()) {
    const auto n = static_cast<uint64_t>(t.rows() * t.cols());
    weights += n;
    bytes += t.bytes();
    by_dtype[std::string(name_of(t.dtype))] += n;
  }
  std::string dtypes;
  for (const auto& [name, n] : by_dtype)
    dtypes += (dtypes.empty() ? "" : ", ") + name +
              (by_dtype.size() > 1 ? " (" + grouped(n) + " weights)" : "");
  lines.push_back(joined("tensors: ", base->tensors().size(), " in ", base->storage().files.size(),
                         " file(s)"));
  lines.push_back(
      joined("weights: ", grouped(weights), " in ", grouped(bytes), " bytes, all finite"));
  lines.push_back("dtype: " + dtypes);
  lines.push_back(joined("companion files: ", base->companion_files().size()));
  for (const std::string& note : base->notes()) lines.push_back("note: " + note);
  lines.push_back(base->is_shard_set() ? "base digest: " + digest + " (every file verified)"
                                       : "base digest: " + digest);
  return lines;
}

}  // namespace lorashard
