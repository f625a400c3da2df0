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
#include "parallel/shard.h"

namespace lorashard {

// Rotary embedding: plain, with the frequencies rescaled, or none (positions are learned then).
struct RopeConfig {
  enum class Kind : uint8_t { Default, Linear, Llama3, None } kind = Kind::Default;
  double theta = 10000;
  double factor = 1;  // Linear, Llama3
  double low_freq_factor = 1, high_freq_factor = 4;
  int64_t original_max_position_embeddings = 8192;  // Llama3
};

// What a family calls the modules outside of its layers.
struct ModuleNames {
  const char* root = "model";     // the model without its head
  const char* layers = "layers";  // below root, like the names that follow
  const char* embedding = "embed_tokens";
  const char* positions = nullptr;  // learned positions: "wpe"
  const char* final_norm = "norm";
};

enum class NormKind : uint8_t {
  Rms,
  Layer,  // with mean and bias
};

struct ModelConfig {
  std::string model_type;    // "llama", "mistral", "qwen2", "qwen3", "gemma3_text", "gpt2"
  std::string architecture;  // "LlamaForCausalLM", …
  int64_t hidden_size = 0, layers = 0, heads = 0, kv_heads = 0, head_dim = 0;
  int64_t intermediate_size = 0, vocab_size = 0, max_position_embeddings = 0;
  ModuleNames names;
  NormKind norm = NormKind::Rms;
  float norm_eps = 1e-6f;
  Activation activation = Activation::SILU;
  bool gated_mlp = true;   // act(gate(x)) * up(x), else act(gate(x)) alone
  bool fused_qkv = false;  // q, k and v are the rows of one linear module
  bool conv1d = false;     // weights of linear modules lie transposed in files, (in, out)
  RopeConfig rope;
  std::optional<RopeConfig> window_rope;  // of layers with a sliding window, where it is another
  bool tied_embeddings = false;
  bool qkv_bias = false, o_bias = false, mlp_bias = false;
  bool qk_norm = false;        // RMS norm of each query and key head before rope
  bool post_norms = false;     // RMS norm of each sublayer's output before it is added
  float norm_gain_offset = 0;  // 1 where the file stores gain - 1
  float embedding_scale = 1;   // multiplies the embeddings, rounded to the activations' type
  float attention_scale = 1;   // multiplies q k^T; 1/sqrt(head_dim) unless the family says
  bool attention_scale_by_layer = false;  // that of layer i is divided by i + 1
  std::vector<int64_t> layer_window;      // per layer: 0, or the sliding window
  DType stored_dtype = DType::BF16;       // dtype / torch_dtype
  std::optional<int64_t> bos_token_id;
  // The token whose row of the embedding gets no gradient from the look-up (torch's padding_idx).
  std::optional<int64_t> padding_id;
  std::vector<int64_t> eos_token_ids;
};

// How a tensor is split over the tensor-parallel ranks.
enum class Split : uint8_t {
  None,         // replicated: norms
  QueryRows,    // rows by query heads x head_dim
  QkvRows,      // rows of q, k and v, one behind the other: three ranges
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
  bool transposed = false;  // the rows that `split` speaks of are the columns in files
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
enum class InputGroup : uint8_t { QKV, O, GateUp, Down };
inline constexpr InputGroup kInputGroups[] = {InputGroup::QKV, InputGroup::O, InputGroup::GateUp,
                                              InputGroup::Down};
template <class T>
using PerGroup = EnumArray<InputGroup, std::size(kInputGroups), T>;

enum class NormRole : uint8_t { AttentionInput, MlpInput, Query, Key, AttentionOutput, MlpOutput };
template <class T>
using PerNorm = EnumArray<NormRole, 6, T>;

// A module with weights in a layer: the one place that knows its name, its sizes, how it is split
// over the ranks, and what it does there.
struct LayerModule {
  enum class Kind : uint8_t { Linear, Norm } kind;
  const char* name;                   // "self_attn.q_proj": behind the layer's own name
  int64_t out_features, in_features;  // weight(out,in); of a norm (1, gains)
  Split split = Split::None;          // of the weight
  // Linear modules: what they read, and whether they have a bias(out).
  InputGroup group = {};
  bool bias = false;        // norms have them too
  NormRole role = {};       // of a norm
  bool transposed = false;  // in files weight(in,out)
};

// The modules of a layer, in the order of its tensors.
std::vector<LayerModule> layer_modules(const ModelConfig& config, int64_t layer);
// "model.layers.3."
std::string layer_prefix(const ModelConfig& config, int64_t layer);
// "model.embed_tokens": `name` is one of config.names.
std::string outer_name(const ModelConfig& config, const char* name);

// Where a module stands that LoRA may adapt.
enum class ModuleRole : uint8_t { Layer, Embedding, Head };

// One module that LoRA may adapt. Weight: name + ".weight", (out, in), or transposed.
//
// The embedding has the head's form: outputs are the vocabulary's rows, so that the update of its
// weight (V,H) is scaling B A with B(V,lora_rank) and A(lora_rank,H). PEFT has the transposed ones,
// lora_embedding_A = B^T and lora_embedding_B = A^T; only its files do here.
struct LinearModule {
  std::string name;  // "model.layers.0.self_attn.q_proj"
  int layer;         // -1: of none
  int64_t out_features, in_features;
  Split split;
  InputGroup group = {};
  bool transposed = false;  // in files weight(in,out): PEFT's fan_in_fan_out
  ModuleRole role = ModuleRole::Layer;
};

// Parses and checks DIR/config.json; errors name the file and the setting. `source` names the file
// in errors. Settings that transformers reads for the architecture, that change the mathematics and
// that are not supported are refused by name; those that it does not read are added to `notes`.
ModelConfig parse_model_config(const std::string& json_text, const std::string& source,
                               std::vector<std::string>* notes = nullptr);

// Every tensor of the model, in the order embedding, layers, final norm, head (absent when tied).
std::vector<TensorSpec> model_tensors(const ModelConfig& config);
// The linear modules of the layers, by layer, then as layer_modules() has them: "all-linear".
std::vector<LinearModule> linear_modules(const ModelConfig& config);
// The modules that PEFT adapts in this family where target_modules is left out.
std::vector<std::string> default_targets(const ModelConfig& config);
// Every module that LoRA may adapt: linear_modules(), then head and embedding.
std::vector<LinearModule> lora_modules(const ModelConfig& config);
// The tensor in which the base keeps a weight: that of the embedding for the head of a tied model.
std::string stored_tensor(const ModelConfig& config, const std::string& tensor);
// The names of all other modules that transformers makes for the architecture (named_modules()):
// containers, norms, activations, rotary embedding, embedding and head.
std::vector<std::string> other_modules(const ModelConfig& config);

// The part of a tensor that tensor-parallel rank `rank` of `ranks` holds.
struct TensorPart {
  int64_t row_begin, row_end, col_begin, col_end;
  bool operator==(const TensorPart&) const = default;
};
// Of a tensor that is cut in one place. REQUIRES: split is not QkvRows.
TensorPart tensor_part(const ModelConfig& config, Split split, int64_t rows, int64_t cols, int rank,
                       int ranks);
// Of any: one part, or those of q, k and v. As the tensor lies in files.
std::vector<TensorPart> tensor_parts(const ModelConfig& config, const TensorSpec& spec, int rank,
                                     int ranks);
// The entries that it holds of a dimension of n that `split` cuts: one range, or three.
std::vector<Range> split_ranges(const ModelConfig& config, Split split, int64_t n, int rank,
                                int ranks);

}  // namespace lorashard
