#include "trainer/resume.h"

#include <fmt/format.h>

#include <algorithm>

#include "configs/error.h"

namespace lorashard {
namespace {

void check_same_run(const LoadedCheckpoint& loaded, const Factors& factors,
                    const TrainingCounters& ours, const Config& config) {
  const TrainingCounters& theirs = loaded.state.counters;
  const std::string name = loaded.path.string();
  if (theirs.base_digest != ours.base_digest) {
    fail_input(
        config.where("model.path"),
        fmt::format("the base has digest {:.16}…, {} was made on {:.16}…; give the base that "
                    "the run began with",
                    ours.base_digest, name, theirs.base_digest));
  }
  if (theirs.seed != ours.seed) {
    fail_input(config.where("train.seed"),
               fmt::format("train.seed is {}, {} was made with {}; a run keeps its seed", ours.seed,
                           name, theirs.seed));
  }
  if (theirs.data_digest != ours.data_digest) {
    fail_input(config.where("data.train"),
               name +
                   " was made on other training data (its SHA-256 differs); give the same file, "
                   "or begin a new run with lora.init_from");
  }
  const int64_t batch = config.run.train().global_batch_size();
  if (theirs.sequences_consumed != theirs.step * batch) {
    fail_input(
        config.where("train.global_batch_size"),
        fmt::format("train.global_batch_size is {}, {} was made with {}; a run keeps its "
                    "batch",
                    batch, name, theirs.sequences_consumed / std::max<int64_t>(1, theirs.step)));
  }
  if (theirs.config_digest != ours.config_digest) {
    fail_input(config.where("data"),
               name +
                   " was made with another data.format, seq_len, long_sequences, append_eos or "
                   "shuffle; a run keeps them");
  }
  const auto& modules = loaded.state.adapter.modules;
  bool same = modules.size() == factors.modules().size();
  for (size_t i = 0; same && i < modules.size(); ++i) {
    const LoraModule& m = factors.modules()[i];
    same = modules[i].name == m.linear.name && modules[i].rank == m.rank &&
           modules[i].alpha == m.alpha;
  }
  if (!same || loaded.state.adapter.config.use_rslora != factors.config().use_rslora) {
    fail_input(config.where("lora"),
               fmt::format("{} adapts {} modules with rank {}, alpha {}; the settings here give {} "
                           "modules, rank {}, alpha {} or other targets; a run keeps them",
                           name, modules.size(), loaded.state.adapter.config.rank,
                           loaded.state.adapter.config.alpha, factors.modules().size(),
                           factors.config().rank, factors.config().alpha));
  }
}

}  // namespace

std::string settings_digest(const RunConfig& run) {
  const auto& d = run.data();
  const std::string text = fmt::format("{} {} {} {} {}", int(d.format()), d.seq_len(),
                                       int(d.long_sequences()), d.append_eos(), d.shuffle());
  return sha256_hex(text.data(), text.size());
}

ResumedRun load_run(const fs::path& run_dir, const ModelConfig& model, Factors& factors,
                    TrainingCounters& counters, const Config& config) {
  const auto loaded = load_newest_checkpoint(run_dir, linear_modules(model));
  if (!loaded) return {};
  check_same_run(*loaded, factors, counters, config);
  factors.load(loaded->state.adapter);
  for (const auto& [parts, to] :
       {std::pair{&loaded->state.first_moment, factors.first_moments()},
        std::pair{&loaded->state.second_moment, factors.second_moments()}}) {
    std::vector<float> flat(static_cast<size_t>(factors.size()));
    for (size_t i = 0; i < factors.modules().size(); ++i) {
      const LoraModule& m = factors.modules()[i];
      std::copy((*parts)[2 * i].begin(), (*parts)[2 * i].end(), flat.begin() + m.a_offset);
      std::copy((*parts)[2 * i + 1].begin(), (*parts)[2 * i + 1].end(), flat.begin() + m.b_offset);
    }
    factors.write(to, flat);
  }
  counters = loaded->state.counters;
  return {true, loaded->notes};
}

void share_run(ResumedRun& resumed, Factors& factors, TrainingCounters& counters,
               Communicator& world) {
  int64_t head[5] = {resumed.found, counters.step, counters.sequences_consumed, counters.tokens,
                     counters.steps_skipped};
  world.broadcast(head, sizeof head, 0, "resume");
  resumed.found = head[0] != 0;
  if (!resumed.found) return;
  counters.step = head[1];
  counters.sequences_consumed = head[2];
  counters.tokens = head[3];
  counters.steps_skipped = head[4];
  for (float* flat : {factors.values(), factors.first_moments(), factors.second_moments()}) {
    std::vector<float> host = factors.read(flat);
    world.broadcast(host.data(), factors.size() * int64_t{sizeof(float)}, 0, "resume");
    factors.write(flat, host);
  }
}

std::vector<std::string> save_run(const fs::path& run_dir, const Factors& factors,
                                  const TrainingCounters& counters, int64_t keep_last) {
  TrainingState state{.counters = counters,
                      .adapter = factors.to_adapter(),
                      .first_moment = {},
                      .second_moment = {}};
  for (const auto& [device, to] : {std::pair{factors.first_moments(), &state.first_moment},
                                   std::pair{factors.second_moments(), &state.second_moment}}) {
    const std::vector<float> flat = factors.read(device);
    for (const LoraModule& m : factors.modules()) {
      const float *a = flat.data() + m.a_offset, *b = flat.data() + m.b_offset;
      to->emplace_back(a, a + m.rank * m.linear.in_features);
      to->emplace_back(b, b + m.rank * m.linear.out_features);
    }
  }
  return save_checkpoint(run_dir, state, keep_last);
}

void save_final_adapter(const fs::path& run_dir, const Factors& factors) {
  const fs::path dir = run_dir / "adapter";
  std::error_code ignored;
  fs::remove_all(dir, ignored);
  create_directory_atomic(
      dir, [&](const fs::path& temporary) { write_adapter(temporary, factors.to_adapter()); });
}

}  // namespace lorashard
