#include "trainer/run/resume.h"

#include <fmt/format.h>

#include <algorithm>

#include "configs/error.h"
#include "trainer/run/setting_changes.h"

namespace lorashard {
namespace {

// What no flag changes: the base and the shapes of the factors.
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
  const auto& modules = loaded.state.adapter.modules;
  bool same = modules.size() == factors.modules().size();
  for (size_t i = 0; same && i < modules.size(); ++i) {
    const LoraModule& m = factors.modules()[i];
    same = modules[i].name == m.linear.name && modules[i].lora_rank() == m.lora_rank &&
           modules[i].alpha == m.alpha;
  }
  if (!same || loaded.state.adapter.config.use_rslora != factors.layout().config.use_rslora) {
    fail_input(config.where("lora"),
               fmt::format("{} adapts {} modules with rank {}, alpha {}; the settings here give {} "
                           "modules, rank {}, alpha {} or other targets; a run keeps them",
                           name, modules.size(), loaded.state.adapter.config.rank,
                           loaded.state.adapter.config.alpha, factors.modules().size(),
                           factors.layout().config.rank, factors.layout().config.alpha));
  }
}

// Of everything but base and factors.
std::vector<SettingChange> changes_since(const TrainingCounters& theirs,
                                         const TrainingCounters& ours) {
  std::vector<SettingChange> changes;
  if (theirs.data_digest != ours.data_digest) {
    changes.push_back({"data.train", fmt::format("(SHA-256 {:.16}…)", theirs.data_digest),
                       fmt::format("(SHA-256 {:.16}…)", ours.data_digest), true});
  }
  std::vector<std::string> before = theirs.settings;
  if (before.empty()) {  // an earlier version recorded less
    before = ours.settings;
    before.push_back(fmt::format("train.seed: {}", theirs.seed));
    if (theirs.step > 0) {
      before.push_back(
          fmt::format("train.global_batch_size: {}", theirs.sequences_consumed / theirs.step));
    }
    if (theirs.config_digest != ours.config_digest) {
      changes.push_back({"data", "format, seq_len, long_sequences, append_eos, add_bos or shuffle",
                         "what they are now", true});
    }
  }
  for (SettingChange& change : changed_settings(before, ours.settings)) {
    changes.push_back(std::move(change));
  }
  return changes;
}

// Error (status 2) that names every change that is not accepted, the first with its place.
void refuse_changes(const std::vector<SettingChange>& changes, const std::string& checkpoint,
                    const Config& config) {
  std::string all;
  const SettingChange* first = nullptr;
  for (const SettingChange& change : changes) {
    if (!change.to_accept) continue;
    if (!first) first = &change;
    all += (all.empty() ? "" : ", ") + change.text();
  }
  if (!first) return;
  fail_input(config.where(first->path),
             fmt::format("{} since {} was made; give what the run had, or continue it so with "
                         "--resume --accept-changes",
                         all, checkpoint));
}

// Whether places of the stream still mean the sequences that they meant.
bool keeps_place(const std::vector<SettingChange>& changes, const TrainingCounters& theirs,
                 const TrainingCounters& ours) {
  const bool same_count = theirs.sequences > 0 ? theirs.sequences == ours.sequences
                                               : theirs.data_digest == ours.data_digest;
  return same_count && std::none_of(changes.begin(), changes.end(), [](const SettingChange& c) {
           return c.path == "data" || c.path == "data.shuffle" || c.path == "train.seed";
         });
}

// The run's counters as they go on here, with notes of what has changed.
void take_over(TrainingCounters& counters, const TrainingCounters& theirs,
               const std::vector<SettingChange>& changes, std::vector<std::string>& notes) {
  TrainingCounters next = theirs;
  next.seed = counters.seed;
  next.data_digest = counters.data_digest;
  next.config_digest = counters.config_digest;
  next.settings = counters.settings;
  next.sequences = counters.sequences;
  bool accepted = false;
  for (const SettingChange& change : changes) {
    next.changes.push_back(fmt::format("step {}: {}", theirs.step, change.text()));
    notes.push_back(fmt::format("{}, from step {} on{}", change.text(), theirs.step + 1,
                                change.path == "lora.init_from"
                                    ? " without effect: the factors are the checkpoint's"
                                    : ""));
    accepted |= change.to_accept;
  }
  if (!keeps_place(changes, theirs, counters)) {
    next.data_begins = theirs.sequences_consumed;
    notes.push_back("changes accepted; the data begins anew");
  } else if (accepted) {
    notes.push_back("changes accepted; the run goes on at its place in the data");
  }
  counters = std::move(next);
}

// RUN/adapter has the weights of this checkpoint.
bool has_final_adapter(const fs::path& run_dir, const fs::path& checkpoint) {
  constexpr const char* kWeights = "adapter_model.safetensors";
  const fs::path mine = run_dir / "adapter" / kWeights;
  return fs::exists(run_dir / "adapter" / "adapter_config.json") && fs::exists(mine) &&
         sha256_file(mine) == sha256_file(checkpoint / kWeights);
}

}  // namespace

std::string settings_digest(const RunConfig& run) {
  const auto& d = run.data();
  const std::string text = fmt::format("{} {} {} {} {}", int(d.format()), d.seq_len(),
                                       int(d.long_sequences()), d.append_eos(), d.shuffle());
  const std::string all = text + (d.add_bos() ? "" : " no bos");
  return sha256_hex(all.data(), all.size());
}

ResumedRun load_run(const fs::path& run_dir, const ModelConfig& model, Factors& factors,
                    TrainingBuffers& buffers, TrainingCounters& counters, const Config& config,
                    bool accept_changes) {
  const auto loaded = load_newest_checkpoint(run_dir, linear_modules(model));
  if (!loaded) return {};
  ResumedRun resumed{.found = true, .notes = loaded->notes};
  const TrainingCounters& theirs = loaded->state.counters;
  const int64_t steps = config.run.train().steps();
  if (theirs.step > steps) {
    fail_input(config.where("train.steps"),
               fmt::format("train.steps is {}, the run has made {} ({}); give more to continue it",
                           steps, theirs.step, loaded->path.string()));
  }
  if (theirs.step == steps && has_final_adapter(run_dir, loaded->path)) {
    resumed.finished = true;
    return resumed;
  }
  check_same_run(*loaded, factors, counters, config);
  const std::vector<SettingChange> changes = changes_since(theirs, counters);
  if (!accept_changes) refuse_changes(changes, loaded->path.string(), config);
  take_over(counters, theirs, changes, resumed.notes);
  factors.load(loaded->state.adapter);
  factors.write_modules(buffers.first_moments(), loaded->state.first_moment);
  factors.write_modules(buffers.second_moments(), loaded->state.second_moment);
  return resumed;
}

void share_run(ResumedRun& resumed, Factors& factors, TrainingBuffers& buffers,
               TrainingCounters& counters, Communicator& world) {
  int64_t head[] = {
      resumed.found,        resumed.finished, counters.step,         counters.sequences_consumed,
      counters.data_begins, counters.tokens,  counters.steps_skipped};
  world.broadcast(head, sizeof head, 0, "resume");
  resumed.found = head[0] != 0;
  resumed.finished = head[1] != 0;
  if (!resumed.found || resumed.finished) return;
  counters.step = head[2];
  counters.sequences_consumed = head[3];
  counters.data_begins = head[4];
  counters.tokens = head[5];
  counters.steps_skipped = head[6];
  for (float* flat : {factors.values(), buffers.first_moments(), buffers.second_moments()}) {
    std::vector<float> host = factors.read(flat);
    world.broadcast(host.data(), factors.size() * int64_t{sizeof(float)}, 0, "resume");
    factors.write(flat, host);
  }
}

std::vector<std::string> save_run(const fs::path& run_dir, const Factors& factors,
                                  const TrainingBuffers& buffers, const TrainingCounters& counters,
                                  int64_t keep_last) {
  return save_checkpoint(run_dir,
                         {.counters = counters,
                          .adapter = factors.to_adapter(),
                          .first_moment = factors.read_modules(buffers.first_moments()),
                          .second_moment = factors.read_modules(buffers.second_moments())},
                         keep_last);
}

void save_final_adapter(const fs::path& run_dir, const Factors& factors) {
  const fs::path dir = run_dir / "adapter";
  const auto write = [&](const fs::path& temporary) {
    write_adapter(temporary, factors.to_adapter());
  };
  if (fs::is_directory(dir)) {
    replace_files(dir, write);
  } else {
    create_directory_atomic(dir, write);
  }
}

}  // namespace lorashard
