#include "checkpoint/config_settings.h"

#include <cmath>

#include "checkpoint/json_strict.h"
#include "configs/error.h"

namespace lorashard {

using nlohmann::json;

void Settings::fail(const std::string& key, const std::string& what) const {
  fail_input(source_, prefix_ + printable(key) + ": " + what);
}

const json& Settings::get(const std::string& key) {
  static const json null;
  seen_.insert(key);
  const auto it = object_.find(key);
  return it == object_.end() ? null : *it;
}

int64_t Settings::size(const std::string& key, std::optional<int64_t> absent,
                       std::optional<int64_t> null) {
  const json& v = get(key);
  if (!has(key) && absent) return *absent;
  if (!has(key)) fail(key, "is missing; it must be a positive integer");
  if (v.is_null() && null) return *null;
  constexpr int64_t kMost = INT32_MAX;
  if (!v.is_number_integer() || v.get<double>() < 1 || v.get<double>() > kMost)
    fail(key, "is " + v.dump() + "; it must be a positive integer below 2^31");
  return v.get<int64_t>();
}

double Settings::number(const std::string& key, std::optional<double> absent) {
  const json& v = get(key);
  if (v.is_null() && absent) return *absent;
  if (v.is_null()) fail(key, "is missing; it must be a number");
  if (!v.is_number()) fail(key, "is " + v.dump() + "; it must be a number");
  return v.get<double>();
}

double Settings::positive(const std::string& key, std::optional<double> absent) {
  const double x = number(key, absent);
  if (!(x > 0) || !std::isfinite(x))
    fail(key, "is " + get(key).dump() + "; it must be a positive number");
  return x;
}

bool Settings::flag(const std::string& key, bool absent) {
  const json& v = get(key);
  if (v.is_null()) return absent;
  if (!v.is_boolean()) fail(key, "is " + v.dump() + "; it must be true or false");
  return v.get<bool>();
}

std::string Settings::text(const std::string& key, const std::string& absent) {
  const json& v = get(key);
  if (v.is_null()) return absent;
  if (!v.is_string()) fail(key, "is " + v.dump() + "; it must be a string");
  return v.get<std::string>();
}

std::vector<std::string> Settings::unread(const std::set<std::string>& harmless) const {
  std::vector<std::string> keys;
  for (const auto& [key, v] : object_.items()) {
    if (seen_.count(key) || harmless.count(key)) continue;
    const bool empty =
        v.is_string() ? v.get_ref<const std::string&>().empty() : v.is_structured() && v.empty();
    const bool off = empty || v.is_null() || v == json(false) || v == json(0) || v == json(1);
    if (!off) keys.push_back(prefix_ + printable(key));
  }
  return keys;
}

const std::set<std::string>& harmless_keys() {
  static const std::set<std::string> keys{
      "_attn_implementation",
      "_attn_implementation_autoset",
      "_commit_hash",
      "_flash_attn_2_enabled",
      "_name_or_path",
      "attn_implementation",
      "auto_map",
      "bad_words_ids",
      "begin_suppress_tokens",
      "cache_implementation",
      "chunk_size_feed_forward",
      "custom_pipelines",
      "decoder_start_token_id",
      "diversity_penalty",
      "do_sample",
      "early_stopping",
      "encoder_no_repeat_ngram_size",
      "exponential_decay_length_penalty",
      "finetuning_task",
      "forced_bos_token_id",
      "forced_eos_token_id",
      "gradient_checkpointing",
      "id2label",
      "initializer_range",
      "is_decoder",
      "is_llama_config",
      "label2id",
      "length_penalty",
      "max_length",
      "max_new_tokens",
      "max_sequence_length",
      "max_window_layers",
      "min_length",
      "model_max_length",
      "n_ctx",
      "name_or_path",
      "no_repeat_ngram_size",
      "num_beam_groups",
      "num_beams",
      "num_labels",
      "num_return_sequences",
      "output_attentions",
      "output_hidden_states",
      "output_past",
      "output_scores",
      "pad_token_id",
      "predict_special_tokens",
      "prefix",
      "problem_type",
      "remove_invalid_values",
      "repetition_penalty",
      "return_dict",
      "return_dict_in_generate",
      "sep_token_id",
      "summary_activation",
      "summary_first_dropout",
      "summary_hidden_size",
      "summary_proj_to_labels",
      "summary_proj_to_logits",
      "summary_type",
      "summary_use_proj",
      "suppress_tokens",
      "task_specific_params",
      "temperature",
      "tf_legacy_loss",
      "tie_encoder_decoder",
      "tokenizer_class",
      "top_k",
      "top_p",
      "torchscript",
      "transformers.js_config",
      "transformers_version",
      "typical_p",
      "unk_token_id",
      "unsloth_fixed",
      "unsloth_version",
      "use_bfloat16",
      "use_cache",
      "use_return_dict",
  };
  return keys;
}

}  // namespace lorashard
