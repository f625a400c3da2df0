#include "trainer/session.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>
#include <set>

#include "checkpoint/pattern.h"
#include "configs/error.h"
#include "trainer/tokenizer/tokenizer.h"

namespace lorashard {
namespace {

std::set<std::string> names(const std::vector<LinearModule>& modules) {
  std::set<std::string> result;
  for (const LinearModule& m : modules) result.insert(m.name);
  return result;
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

// That each expression is one, at its setting.
void check_expressions(const Config& config, const AdapterConfig& c) {
  if (c.target_regex) Pattern(c.target_modules[0], config.where("lora.target_modules"));
  if (c.exclude_regex) Pattern(c.exclude_modules[0], config.where("lora.exclude_modules"));
  for (const auto& [key, rank] : c.rank_pattern)
    module_pattern(key, config.where("lora.rank_pattern." + key));
  for (const auto& [key, alpha] : c.alpha_pattern)
    module_pattern(key, config.where("lora.alpha_pattern." + key));
}

// The name under which a base is known: the last part of a path, or what the Hugging Face hub's
// cache makes of "org/name" (models--org--name/snapshots/REVISION).
std::string base_name(const std::string& path) {
  const std::string marker = "models--";
  if (const size_t at = path.rfind(marker); at != std::string::npos) {
    const std::string folder = path.substr(at, path.find('/', at) - at);
    return folder.substr(folder.rfind("--") + 2);
  }
  const size_t end = path.find_last_not_of('/');
  if (end == std::string::npos) return "";
  const std::string whole = path.substr(0, end + 1);
  return whole.substr(whole.rfind('/') + 1);
}

// The names of the base at hand: of its folder, and as its config.json says.
std::vector<std::string> base_names(const BaseModel& base) {
  std::error_code ec;
  std::vector<std::string> found = {base_name(fs::absolute(base.path(), ec).lexically_normal()),
                                    base_name(fs::canonical(base.path(), ec))};
  const auto config = nlohmann::json::parse(base.config_text(), nullptr, false);
  if (config.is_object() && config.contains("_name_or_path") && config["_name_or_path"].is_string())
    found.push_back(base_name(config["_name_or_path"].get<std::string>()));
  return found;
}

bool same_name(const std::string& a, const std::string& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](unsigned char x, unsigned char y) {
    return std::tolower(x) == std::tolower(y);
  });
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
  c.exclude_regex = is_module_regex(lora.exclude_modules());
  for (const auto& p : lora.rank_pattern()) c.rank_pattern.emplace_back(p.key(), p.value());
  for (const auto& p : lora.alpha_pattern()) c.alpha_pattern.emplace_back(p.key(), p.value());
  check_expressions(config, c);
  const std::vector<std::string> others = other_modules(base.config());
  const auto match = [&](const AdapterConfig& by) {
    return match_targets(all, by.target_modules, by.target_regex, by.exclude_modules,
                         config.where("lora.target_modules"), by.exclude_regex, others);
  };
  if (lora.init_from().empty()) {
    plan.modules = match(c);
    plan.notes = idle_selectors(c, all, others, plan.modules);
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
    // What counts is what the settings come to.
    AdapterConfig ours = theirs;
    if (!c.rank_pattern.empty()) ours.rank_pattern = c.rank_pattern;
    if (!c.alpha_pattern.empty()) ours.alpha_pattern = c.alpha_pattern;
    for (const AdapterModule& m : plan.start->modules) {
      if (module_rank(ours, m.name) != m.rank) ignored("lora.rank_pattern");
      if (module_alpha(ours, m.name) != m.alpha) ignored("lora.alpha_pattern");
    }
    std::vector<LinearModule> adapted = modules_with_factors(*plan.start, all);
    if (c.target_modules.empty() && !c.exclude_modules.empty()) {
      AdapterConfig by = c;
      by.target_modules.clear();
      for (const LinearModule& m : adapted) by.target_modules.push_back(m.name);
      by.target_regex = false;
      if (names(match(by)) != names(adapted)) ignored("lora.exclude_modules");
    }
    if (!c.target_modules.empty() && names(match(c)) != names(adapted)) {
      fail_input(config.where("lora.target_modules"),
                 "chooses other modules than the adapter of lora.init_from has factors for; leave "
                 "target_modules out to take the adapter's");
    }
    plan.notes = adapter_base_notes(*plan.start, lora.init_from(), base);
    for (std::string& note : idle_selectors(c, all, others, adapted))
      plan.notes.push_back(std::move(note));
    const double dropout = c.dropout;
    c = theirs;
    c.dropout = dropout;
    plan.modules = std::move(adapted);
  }
  name_targets(c, all, plan.modules);
  c.base_model = base.path();
  c.base_digest = base_digest;
  return plan;
}

Factors factors_of(Stream& stream, const ModelConfig& model, const Adapter& adapter,
                   const Mesh& mesh, int64_t tail) {
  Factors factors(stream, model, modules_with_factors(adapter, linear_modules(model)),
                  adapter.config, mesh.tp_rank, mesh.tp_size, tail);
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

std::vector<std::string> adapter_base_notes(const Adapter& adapter, const std::string& where,
                                            const BaseModel& base) {
  if (!adapter.config.base_digest.empty()) return {};
  const std::string& named = adapter.config.base_model;
  std::string note =
      where + ": the adapter carries no digest of its base, as those made elsewhere; ";
  const std::vector<std::string> ours = base_names(base);
  if (named.empty()) {
    note += "it names no base either; its shapes fit " + base.path();
  } else if (std::any_of(ours.begin(), ours.end(), [&](const std::string& name) {
               return same_name(name, base_name(named));
             })) {
    note += "it names " + named + " as its base, as this one is called, and its shapes fit";
  } else {
    note += "it names " + named + " as its base, and this one is " + base.path() +
            ": its shapes fit, check that the weights are the same";
  }
  return {note};
}

}  // namespace lorashard
