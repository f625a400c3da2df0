#include "trainer/session.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "configs/error.h"
#include "trainer/tokenizer/tokenizer.h"

namespace lorashard {
namespace {

std::set<std::string> names(const std::vector<LinearModule>& modules) {
  std::set<std::string> result;
  for (const LinearModule& m : modules) result.insert(m.name);
  return result;
}

// The model's modules that an adapter has factors for.
std::vector<LinearModule> modules_of(const Adapter& adapter, const ModelConfig& model) {
  std::vector<LinearModule> modules;
  for (const LinearModule& m : linear_modules(model)) {
    const auto named = [&](const AdapterModule& a) { return a.name == m.name; };
    if (std::any_of(adapter.modules.begin(), adapter.modules.end(), named)) modules.push_back(m);
  }
  return modules;
}

// Error at `setting` if the config sets it and it differs from what the adapter says.
template <class T>
void must_agree(const Config& config, const std::string& setting, const T& ours, const T& theirs,
                const std::string& what) {
  if (config.locations.contains(setting) && ours != theirs) {
    fail_input(config.where(setting),
               setting + " differs from the adapter of lora.init_from, which has " + what +
                   "; leave the setting out or set it to that");
  }
}

}  // namespace

DType activation_type(const RunConfig& run) {
  return run.compute().dtype() == RunConfig::Compute::BF16 ? DType::BF16 : DType::F32;
}

void check_tensor_degree(const Config& config, const ModelConfig& model) {
  const int64_t tensor = config.run.parallel().tensor();
  if (tensor > model.heads) {
    fail_input(config.where("parallel.tensor"),
               fmt::format("{} ranks are more than the model's {} query heads; use at most {}",
                           tensor, model.heads, model.heads));
  }
}

std::shared_ptr<const Dataset> open_dataset(const Config& config, const std::string& path,
                                            const BaseModel& base) {
  const auto& data = config.run.data();
  DatasetOptions options;
  options.format = data.format();
  options.seq_len = data.seq_len();
  options.long_sequences = data.long_sequences();
  options.append_eos = data.append_eos();
  options.add_bos = data.add_bos();
  options.vocab_size = base.config().vocab_size;
  if (data.format() != RunConfig::Data::TOKENS) {
    auto tokenizer = Tokenizer::from_directory(base.path());
    options.encode = [tokenizer](std::string_view text, std::vector<TextSpan>* spans) {
      return spans ? tokenizer->encode(text, true, *spans) : tokenizer->encode(text);
    };
    options.leading_ids = tokenizer->leading_ids();
    options.notes = tokenizer->notes();
    options.eos_id = tokenizer->eos_id();
  }
  return Dataset::open(path, std::move(options));
}

LoraPlan plan_lora(const Config& config, const BaseModel& base, const std::string& base_digest) {
  const auto& lora = config.run.lora();
  const std::vector<LinearModule> all = linear_modules(base.config());
  LoraPlan plan;
  AdapterConfig& c = plan.config;
  c.rank = lora.rank();
  c.alpha = lora.alpha();
  c.dropout = lora.dropout();
  c.target_modules.assign(lora.target_modules().begin(), lora.target_modules().end());
  c.target_regex = is_module_regex(lora.target_modules());
  c.exclude_modules.assign(lora.exclude_modules().begin(), lora.exclude_modules().end());
  c.use_rslora = lora.use_rslora();
  c.rank_pattern.insert(lora.rank_pattern().begin(), lora.rank_pattern().end());
  c.alpha_pattern.insert(lora.alpha_pattern().begin(), lora.alpha_pattern().end());
  const auto match = [&] {
    return match_targets(all, c.target_modules, c.target_regex, c.exclude_modules,
                         config.where("lora.target_modules"),
                         is_module_regex(lora.exclude_modules()));
  };
  if (lora.init_from().empty()) {
    plan.modules = match();
  } else {
    plan.start = read_adapter(lora.init_from(), all);
    check_adapter_base(*plan.start, lora.init_from(), base_digest);
    const AdapterConfig& theirs = plan.start->config;
    must_agree(config, "lora.rank", c.rank, theirs.rank, "r " + std::to_string(theirs.rank));
    must_agree(config, "lora.alpha", c.alpha, theirs.alpha,
               "lora_alpha " + std::to_string(theirs.alpha));
    must_agree(config, "lora.use_rslora", c.use_rslora, theirs.use_rslora,
               theirs.use_rslora ? "use_rslora true" : "use_rslora false");
    const auto ignored = [&](const char* setting) {
      fail_input(config.where(setting), std::string(setting) +
                                            " differs from the adapter of lora.init_from, which "
                                            "keeps its own; leave the setting out");
    };
    if (!c.rank_pattern.empty() && c.rank_pattern != theirs.rank_pattern) {
      ignored("lora.rank_pattern");
    }
    if (!c.alpha_pattern.empty() && c.alpha_pattern != theirs.alpha_pattern) {
      ignored("lora.alpha_pattern");
    }
    if (!c.exclude_modules.empty() && c.target_modules.empty() &&
        c.exclude_modules != theirs.exclude_modules) {
      ignored("lora.exclude_modules");
    }
    std::vector<LinearModule> adapted = modules_of(*plan.start, base.config());
    if (!c.target_modules.empty() && names(match()) != names(adapted)) {
      fail_input(config.where("lora.target_modules"),
                 "chooses other modules than the adapter of lora.init_from has factors for; leave "
                 "target_modules out to take the adapter's");
    }
    const double dropout = c.dropout;
    c = theirs;
    c.dropout = dropout;
    plan.modules = std::move(adapted);
  }
  c.base_model = base.path();
  c.base_digest = base_digest;
  return plan;
}

Factors factors_of(Stream& stream, const ModelConfig& model, const Adapter& adapter,
                   const Mesh& mesh, int64_t tail) {
  Factors factors(stream, model, modules_of(adapter, model), adapter.config, mesh.tp_rank,
                  mesh.tp_size, tail);
  factors.load(adapter);
  return factors;
}

void check_adapter_base(const Adapter& adapter, const std::string& where,
                        const std::string& base_digest) {
  const std::string& theirs = adapter.config.base_digest;
  if (!theirs.empty() && theirs != base_digest) {
    fail_input(where, "the adapter was made for the base with digest " + theirs.substr(0, 16) +
                          "…, this base has " + base_digest.substr(0, 16) +
                          "…; give the base that it was made for");
  }
}

}  // namespace lorashard
