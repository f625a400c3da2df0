#include "trainer/run/run_options.h"

#include <set>

#include "configs/error.h"
#include "trainer/data/tokenizer/tokenizer.h"
#include "trainer/run/agreed_inputs.h"
#include "trainer/run/compute.h"
#include "trainer/run/schedule.h"

namespace lorashard {
namespace {

ScheduleKind schedule_kind(const RunConfig& run) {
  switch (run.schedule().kind()) {
    case RunConfig::Schedule::LINEAR:
      return ScheduleKind::Linear;
    case RunConfig::Schedule::COSINE:
      return ScheduleKind::Cosine;
    default:
      return ScheduleKind::Constant;
  }
}

Recompute recompute(const RunConfig& run) {
  switch (run.compute().recompute()) {
    case RunConfig::Compute::Recompute::NONE:
      return Recompute::None;
    case RunConfig::Compute::Recompute::MLP:
      return Recompute::Mlp;
    case RunConfig::Compute::Recompute::FULL:
      return Recompute::Full;
    default:
      return Recompute::Auto;
  }
}

std::vector<std::string> with_model_and_adapter(std::vector<std::string> files,
                                                const RunConfig& run, const std::string& adapter) {
  const bool tokenized = !has_token_ids(run.data().format());
  for (const auto& more : {adapter_files(adapter), model_files(run.model().path(), tokenized)}) {
    files.insert(files.end(), more.begin(), more.end());
  }
  return files;
}

}  // namespace

DatasetOptions dataset_options(const RunConfig& run, const BaseModel& base) {
  const auto& data = run.data();
  DatasetOptions options;
  options.format = data.format();
  options.seq_len = data.seq_len();
  options.long_sequences = data.long_sequences();
  options.append_eos = data.append_eos();
  options.add_bos = data.add_bos();
  options.vocab_size = base.config().vocab_size;
  if (has_token_ids(data.format())) return options;
  auto tokenizer = Tokenizer::from_directory(base.path());
  options.leading_ids = tokenizer->leading_ids();
  options.notes = tokenizer->notes();
  options.eos_id = tokenizer->eos_id();
  options.encode = [tokenizer](std::string_view text, std::vector<TextSpan>* spans) {
    return spans ? tokenizer->encode(text, true, *spans) : tokenizer->encode(text);
  };
  return options;
}

ModelOptions eval_options(const RunConfig& run) {
  ModelOptions o;
  o.activation_type = run.compute().dtype() == RunConfig::Compute::BF16 ? DType::BF16 : DType::F32;
  const bool pairs = is_preference(run.data().format());
  o.max_tokens = run.train().micro_batch_size() * run.data().seq_len() * (pairs ? 2 : 1);
  o.max_positions = run.data().seq_len();
  if (pairs) o.preference_beta = run.dpo().beta();
  return o;
}

ModelOptions training_options(const RunConfig& run, const Stream& stream, int host_ranks) {
  ModelOptions o = eval_options(run);
  o.recompute = recompute(run);
  o.overlap =
      run.parallel().has_overlap() ? run.parallel().overlap() : stream.backend() == Backend::CUDA;
  o.memory_budget = activation_budget(stream, host_ranks);
  if (run.train().method() == RunConfig::Train::LORA) o.dropout = float(run.lora().dropout());
  o.seed = run.train().seed();
  return o;
}

int64_t run_steps(const RunConfig& run, const TrainingCounters& counters) {
  if (!run.train().has_epochs()) return run.train().steps();
  return steps_of_epochs(run.train().epochs(), counters.sequences, run.train().global_batch_size(),
                         {counters.step, counters.sequences_consumed, counters.data_begins});
}

void check_full(const ModelConfig& model, const std::string& where) {
  static const std::set<std::string> kFamilies{"llama", "mistral", "qwen2", "qwen3", "gemma3_text"};
  if (kFamilies.contains(model.model_type)) return;
  fail_input(where, "train.method is FULL, which this version does not support for " +
                        model.model_type + "; use LORA");
}

DType full_weight_type(const RunConfig& run) {
  return run.compute().dtype() == RunConfig::Compute::BF16 ? DType::BF16 : DType::F32;
}

std::vector<std::string> full_notes(const Config& config) {
  std::set<std::string> names;
  for (const auto& [path, where] : config.locations) {
    if (path.starts_with("lora.")) names.insert(path.substr(0, path.find_first_of(".[", 5)));
  }
  if (names.empty()) return {};
  std::string all;
  for (const std::string& name : names) all += (all.empty() ? "" : ", ") + name;
  return {config.where("lora") + ": " + all + " without effect: train.method is FULL"};
}

std::optional<DType> model_dtype(const RunConfig& run) {
  switch (run.train().model_dtype()) {
    case RunConfig::Train::FP32:
      return DType::F32;
    case RunConfig::Train::BF16:
      return DType::BF16;
    case RunConfig::Train::FP16:
      return DType::F16;
    default:
      return std::nullopt;
  }
}

std::string length_setting(const RunConfig& run) {
  return run.train().has_epochs() ? "train.epochs" : "train.steps";
}

OptimizerSettings optimizer_settings(const RunConfig& run) {
  const auto& o = run.optimizer();
  return {float(o.beta1()),        float(o.beta2()),  float(o.epsilon()),
          float(o.weight_decay()), o.max_grad_norm(), o.loraplus_lr_ratio()};
}

double learning_rate(const RunConfig& run, int64_t step, int64_t steps) {
  const double peak = run.optimizer().learning_rate();
  const auto& s = run.schedule();
  const Schedule schedule{
      .kind = schedule_kind(run),
      .warmup = s.warmup_ratio() > 0 ? warmup_steps(s.warmup_ratio(), steps) : s.warmup_steps(),
      .minimum = peak > 0 ? s.min_learning_rate() / peak : 0,
      .cycles = s.cycles()};
  return peak * schedule_factor(schedule, step, steps);
}

std::vector<std::string> training_files(const RunConfig& run) {
  std::vector<std::string> files{run.data().train()};
  if (!run.data().eval().empty()) files.push_back(run.data().eval());
  return with_model_and_adapter(std::move(files), run, run.lora().init_from());
}

std::vector<std::string> eval_files(const RunConfig& run, const std::string& adapter) {
  return with_model_and_adapter({run.data().eval()}, run, adapter);
}

}  // namespace lorashard
