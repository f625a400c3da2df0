#include "trainer/run/generate.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>

#include "checkpoint/adapter_base.h"
#include "checkpoint/file_io.h"
#include "checkpoint/json_strict.h"
#include "configs/error.h"
#include "kernels/random.h"
#include "parallel/agree.h"
#include "trainer/data/tokenizer/tokenizer.h"
#include "trainer/run/session.h"

namespace lorashard {
namespace {

// Prompts are computed in pieces of at most this many tokens.
constexpr int64_t kPrefillTokens = 256;

std::vector<int32_t> continue_ids(Model& model, const ModelConfig& config,
                                  const std::vector<int32_t>& prompt,
                                  const std::vector<int32_t>& eos_ids,
                                  const GenerateOptions& options) {
  DecodeState state = model.new_sequence(int64_t(prompt.size()) + options.max_new_tokens);
  std::vector<float> logits(size_t(config.vocab_size));
  std::vector<int32_t> ids = prompt;
  std::vector<int32_t> next = prompt;
  for (int64_t i = 0; i < options.max_new_tokens; ++i) {
    model.decode(state, next, logits);
    const int32_t token = pick_token(logits.data(), config.vocab_size, options.temperature,
                                     options.top_p, options.seed, int64_t(ids.size()));
    if (std::find(eos_ids.begin(), eos_ids.end(), token) != eos_ids.end()) break;
    ids.push_back(token);
    next = {token};
  }
  return ids;
}

// The ids that end a text, as transformers joins them: of config.json, of the tokenizer and of
// generation_config.json, which may be missing. Errors (status 2): a generation_config.json that is
// no JSON object, or an eos_token_id that is no id.
std::vector<int32_t> stop_ids(const BaseModel& base, const Tokenizer& tokenizer) {
  std::vector<int32_t> ids(base.config().eos_token_ids.begin(), base.config().eos_token_ids.end());
  if (tokenizer.eos_id()) ids.push_back(*tokenizer.eos_id());
  const fs::path file = fs::path(base.path()) / "generation_config.json";
  std::error_code ignored;
  if (!fs::exists(file, ignored)) return ids;
  const nlohmann::json object = parse_json_strict(read_text(file), file.string());
  if (!object.is_object()) fail_input(file.string(), "is not a JSON object");
  const auto found = object.find("eos_token_id");
  if (found == object.end() || found->is_null()) return ids;
  for (const nlohmann::json& id : found->is_array() ? *found : nlohmann::json::array({*found})) {
    if (!id.is_number_integer() || id.get<double>() < 0 || id.get<double>() > INT32_MAX)
      fail_input(file.string(), "eos_token_id: " + printable(found->dump()) +
                                    "; it must be null, a token id, or a list of token ids");
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

void check_options(const GenerateOptions& o) {
  if (o.max_new_tokens < 1) fail_input("--max-new-tokens", "must be at least 1");
  if (!(o.temperature >= 0)) fail_input("--temperature", "must be 0 (greedy) or above");
  if (!(o.top_p > 0 && o.top_p <= 1)) fail_input("--top-p", "must be above 0 and at most 1");
}

// Text that may hold anything, as one line.
std::string one_line(const std::string& text) {
  return nlohmann::json(text).dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
}

std::vector<Setting> settings_of(const GenerateOptions& o) {
  const auto setting = [](const char* name, const std::string& value) {
    return Setting{name, value, name};
  };
  std::vector<Setting> settings{setting("--model", o.model),
                                setting("--prompt", one_line(o.prompt)),
                                setting("--max-new-tokens", fmt::to_string(o.max_new_tokens)),
                                setting("--temperature", fmt::to_string(o.temperature)),
                                setting("--top-p", fmt::to_string(o.top_p)),
                                setting("--seed", fmt::to_string(o.seed)),
                                setting("--dtype", std::string(name_of(o.type))),
                                setting("--backend", fmt::to_string(int(o.backend)))};
  for (const std::string& adapter : o.adapters) settings.push_back(setting("--adapter", adapter));
  return settings;
}

std::vector<std::string> input_files(const GenerateOptions& o) {
  std::vector<std::string> files = model_files(o.model, true);
  for (const std::string& dir : o.adapters) {
    if (dir == "base") continue;
    const std::vector<std::string> more = adapter_files(dir);
    files.insert(files.end(), more.begin(), more.end());
  }
  return files;
}

}  // namespace

int32_t pick_token(const float* logits, int64_t vocab, double temperature, double top_p,
                   uint64_t seed, int64_t position) {
  const float* best = std::max_element(logits, logits + vocab);
  if (temperature == 0) return int32_t(best - logits);
  std::vector<double> p(static_cast<size_t>(vocab));
  for (int64_t i = 0; i < vocab; ++i) {
    p[size_t(i)] = std::exp((double(logits[i]) - *best) / temperature);
  }
  std::vector<int32_t> order(p.size());
  std::iota(order.begin(), order.end(), 0);
  // Likeliest first; equal ones in the order of their ids, so that the draw is defined.
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return p[size_t(a)] != p[size_t(b)] ? p[size_t(a)] > p[size_t(b)] : a < b;
  });
  const double total = std::accumulate(p.begin(), p.end(), 0.0);
  double kept = 0;
  size_t count = 0;
  while (count < order.size() && (count == 0 || kept < top_p * total)) {
    kept += p[size_t(order[count++])];
  }
  const auto words = random_words(seed, Purpose::Sampling, 0, uint64_t(position));
  double draw = (double(words[0]) + double(words[1]) * 0x1p-32) * 0x1p-32 * kept;
  for (size_t i = 0; i < count; ++i) {
    draw -= p[size_t(order[i])];
    if (draw < 0) return order[i];
  }
  return order[count - 1];
}

int generate(const GenerateOptions& options, const Ranks& ranks) {
  Session session(ranks, {.settings = settings_of(options),
                          .backend = options.backend,
                          .backend_where = "--backend",
                          .threads = options.threads});
  const Communicator& world = session.world;
  Console& console = session.console;
  std::shared_ptr<const Tokenizer> tokenizer;
  std::vector<int32_t> prompt, eos_ids;
  std::vector<std::optional<Adapter>> adapters;  // empty: the base
  run_agreed(session.world, [&] {
    check_options(options);
    session.open_base(options.model, world.size(), "mpirun");
    const BaseModel& base = *session.base;
    tokenizer = Tokenizer::from_directory(base.path());
    prompt = tokenizer->encode(options.prompt);
    if (prompt.empty()) fail_input("--prompt", "gives no token; at least one is needed");
    // The last token that is drawn is not fed back.
    session.check_positions(int64_t(prompt.size()) + options.max_new_tokens - 1, "--max-new-tokens",
                            fmt::format("a prompt of {} tokens and {} new ones", prompt.size(),
                                        options.max_new_tokens));
    eos_ids = stop_ids(base, *tokenizer);
    for (const std::string& dir : options.adapters) {
      adapters.emplace_back();
      if (dir == "base") continue;
      adapters.back() = read_adapter(dir, base.config());
      check_base_copies(dir, base);
    }
    if (adapters.empty()) adapters.emplace_back();
  });
  if (world.size() > 1) agree_on_inputs(ranks, input_files(options));
  bool any_digest = world.size() > 1;  // the ranks must have the same base
  for (const auto& a : adapters) any_digest |= a && !a->config.base_digest.empty();
  if (any_digest) {
    session.digest_base();
    run_agreed(session.world, [&] {
      for (size_t i = 0; i < adapters.size(); ++i) {
        if (adapters[i]) check_adapter_base(*adapters[i], options.adapters[i], session.base_digest);
      }
    });
  }
  // On stderr: stdout has the text alone.
  if (console.enabled() && built_with_cuda())
    fmt::print(stderr, "{}\n", backend_line(session.device, world.size()));
  report_notes(console, session.base->notes());
  report_notes(console, tokenizer->notes());
  for (size_t i = 0; i < adapters.size(); ++i) {
    if (adapters[i])
      report_notes(console, adapter_base_notes(*adapters[i], options.adapters[i], *session.base));
  }
  session.form_mesh(world.size());
  const ModelConfig& config = session.base->config();
  const auto loaded =
      load_model(session, nullptr, nullptr,
                 {.activation_type = options.type,
                  .max_tokens = std::min<int64_t>(kPrefillTokens, int64_t(prompt.size())),
                  .max_positions = int64_t(prompt.size()) + options.max_new_tokens});
  std::vector<std::optional<Factors>> factors;
  run_agreed(session.world, [&] {
    for (const auto& a : adapters) {
      factors.emplace_back();
      if (a) factors.back().emplace(factors_of(session.stream, config, *a, session.mesh));
    }
  });
  for (size_t i = 0; i < factors.size(); ++i) {
    loaded->model.use_factors(factors[i] ? &*factors[i] : nullptr);
    const std::vector<int32_t> ids = continue_ids(loaded->model, config, prompt, eos_ids, options);
    if (factors.size() > 1) console.line("== " + options.adapters[i]);
    console.line(tokenizer->decode(ids, /*skip_special_tokens=*/true));
  }
  return 0;
}

}  // namespace lorashard
