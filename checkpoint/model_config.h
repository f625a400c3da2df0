// What a transformer is, as data: read from a Hugging Face config.json and checked setting by
// setting. A new family is a new entry in the table of model_config.cpp and not a new class.
#pragma once

#include <array>
#include <cstdint>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

#include "kernels/activation.h"
#include "kernels/tensor.h"

namespace lorashard {

// Rotary embedding: plain, or with the frequencies rescaled.
struct RopeConfig {
  enum class Kind : uint8_t { Default, Linear, Llama3 } kind = Kind::Default;
  double theta = 10000;
  double factor = 1;  // Linear, Llama3
  double low_freq_factor = 1, high_freq_factor = 4;
  int64_t original_max_position_embeddings = 8192;  // Llama3
};

struct ModelConfig {
  std::string model_type;    // "llama", "mistral", "qwen2", "qwen3", "gemma3_text", …
  std::string architecture;  // "LlamaForCausalLM", …
  int64_t hidden_size = 0, layers = 0, heads = 0, kv_heads = 0, head_dim = 0;
  int64_t intermediate_size = 0, vocab_size = 0, max_position_embeddings = 0;
  float rms_norm_eps = 1e-6f;
  Activation activation = Activation::SILU;
  RopeConfig rope;
  std::optional<RopeConfig> window_rope;  // of layers with a sliding window, where it is another
  bool tied_embeddings = false;
  bool qkv_bias = false, o_bias = false, mlp_bias = false;
  bool qk_norm = false;        // RMS norm of each query and key head before rope
  bool post_norms = false;     // RMS norm of each sublayer's output before it is added
  float norm_gain_offset = 0;  // 1 where the file stores gain - 1
  float embedding_scale = 1;   // multiplies the embeddings, rounded to the activations' type
  float attention_scale = 1;   // multiplies q k^T; 1/sqrt(head_dim) unless the family says
  // Mixture of experts: of the layers in expert_layers, each token's MLP is the weighted sum of
  // experts_per_token of `experts` MLPs of width expert_size. No experts: no such layer.
  int64_t experts = 0, experts_per_token = 0, expert_size = 0;
  bool normalized_routing = false;    // the chosen experts' weights are divided by their sum
  std::vector<bool> expert_layers;    // by layer; empty where a family has none
  std::vector<int64_t> layer_window;  // per layer: 0, or the sliding window
  DType stored_dtype = DType::BF16;   // dtype / torch_dtype
  std::optional<int64_t> bos_token_id;
  std::vector<int64_t> eos_token_ids;

  bool has_experts(int64_t layer) const {
    return !expert_layers.empty() && expert_layers[size_t(layer)];
  }
};

// How a tensor is split over the tensor-parallel ranks.
enum class Split : uint8_t {
  None,         // replicated: norms
  QueryRows,    // rows by query heads x head_dim
  KvRows,       // rows by the key/value heads that the rank's query heads use
  RowFeatures,  // rows by split_features: gate, up, their biases
  VocabRows,    // rows by split_features over the vocabulary
  QueryCols,    // columns by query heads: o_proj
  ColFeatures,  // columns by split_features: down_proj
};
// Whether the rank's part of the input gives a partial output, which is then all-reduced
// (Megatron's RowParallelLinear); a bias is added once, after that.
bool is_row_parallel(Split split);

// One tensor that the architecture needs, under its Hugging Face name.
struct TensorSpec {
  std::string name;
  int64_t rows, cols;  // a vector of n is (1, n); its split is over the columns' n entries
  bool vector;
  Split split;
};

// An array indexed by an enum whose values are 0 to N - 1.
template <class E, size_t N, class T>
struct EnumArray : std::array<T, N> {
  T& operator[](E e) { return this->at(size_t(e)); }
  const T& operator[](E e) const { return this->at(size_t(e)); }
};

// The linear modules of a layer that read one input. Those of a group stand next to each other in
// every list, so that one GEMM can apply the A matrices of a group's adapted modules. In the order
// of the forward pass.
enum class InputGroup : uint8_t { QKV, O, Router, GateUp, Down };
inline constexpr InputGroup kInputGroups[] = {InputGroup::QKV, InputGroup::O, InputGroup::Router,
                                              InputGroup::GateUp, InputGroup::Down};
template <class T>
using PerGroup = EnumArray<InputGroup, std::size(kInputGroups), T>;

enum class NormRole : uint8_t { AttentionInput, MlpInput, Query, Key, AttentionOutput, MlpOutput };
template <class T>
using PerNorm = EnumArray<NormRole, 6, T>;

// A module with weights in a layer: the one place that knows its name, its sizes, how it is split
// over the ranks, and what it does there.
struct LayerModule {
  enum class Kind : uint8_t { Linear, Norm } kind;
  std::string name;                   // "self_attn.q_proj": behind the layer's own name
  int64_t out_features, in_features;  // weight(out,in); of a norm (1, gains)
  Split split = Split::None;          // of the weight
  // Linear modules: what they read, and whether they have a bias(out).
  InputGroup group = {};
  bool bias = false;
  NormRole role = {};  // of a norm
  // Of a mixture of experts: the number of the expert whose module this is, or -1. PEFT adapts the
  // weights of all experts as one parameter, of which the first expert's module stands for all.
  int64_t expert = -1;
};

// The modules of a layer, in the order of its tensors.
std::vector<LayerModule> layer_modules(const ModelConfig& config, int64_t layer);
// "model.layers.3."
std::string layer_prefix(int64_t layer);

// One linear module that LoRA may adapt. Weight: name + ".weight", (out, in). Or a parameter of no
// linear module, as PEFT's target_parameters name it: the router's weight (experts, hidden), or the
// weights of all experts, (experts, out, in) (checkpoint/expert_names.h).
struct LinearModule {
  std::string name;  // "model.layers.0.self_attn.q_proj"
  int layer;
  int64_t out_features, in_features;
  Split split;
  InputGroup group = {};
  bool parameter = false;
  int64_t experts = 1;
};

// Parses and checks DIR/config.json; errors name the file and the setting. `source` names the file
// in errors. Settings that transformers reads for the architecture, that change the mathematics and
// that are not supported are refused by name; those that it does not read are added to `notes`.
ModelConfig parse_model_config(const std::string& json_text, const std::string& source,
                               std::vector<std::string>* notes = nullptr);

// Every tensor of the model, in the order embedding, layers, final norm, head (absent when tied).
std::vector<TensorSpec> model_tensors(const ModelConfig& config);
// Every adaptable linear module, by layer, then as layer_modules() has them.
std::vector<LinearModule> linear_modules(const ModelConfig& config);
// The names of all other modules that transformers makes for the architecture (named_modules()):
// containers, norms, activations, rotary embedding, embedding and head.
std::vector<std::string> other_modules(const ModelConfig& config);

// The part of a tensor that tensor-parallel rank `rank` of `ranks` holds.
struct TensorPart {
  int64_t row_begin, row_end, col_begin, col_end;
  bool operator==(const TensorPart&) const = default;
};
TensorPart tensor_part(const ModelConfig& config, Split split, int64_t rows, int64_t cols, int rank,
                       int ranks);

}  // namespace lorashard
