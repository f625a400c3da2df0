#include "checkpoint/training_state.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <stdexcept>

#include "checkpoint/safetensors.h"
#include "checkpoint/training_manifest.h"
#include "checkpoint/weight_state.h"
#include "configs/error.h"

namespace lorashard {
namespace {

constexpr const char* kStateFile = "trainer_state.safetensors";
constexpr const char* kStepPrefix = "step-";

fs::path checkpoints_dir(const fs::path& run_dir) { return run_dir / "checkpoints"; }

std::string step_name(int64_t step) {
  char name[32];
  std::snprintf(name, sizeof name, "%s%06lld", kStepPrefix, static_cast<long long>(step));
  return name;
}

// The step of "step-000100"; nothing for any other name.
std::optional<int64_t> step_of(const std::string& name) {
  if (!name.starts_with(kStepPrefix)) return std::nullopt;
  const std::string digits = name.substr(std::strlen(kStepPrefix));
  if (digits.empty() || digits.size() > 18 ||
      digits.find_first_not_of("0123456789") != std::string::npos)
    return std::nullopt;
  const int64_t step = std::stoll(digits);
  if (name != step_name(step)) return std::nullopt;
  return step;
}

// Steps that have a directory, newest first.
std::vector<int64_t> list_steps(const fs::path& dir) {
  std::vector<int64_t> steps;
  std::error_code ec;
  for (const auto& entry : fs::directory_iterator(dir, ec))
    if (const auto step = step_of(entry.path().filename().string())) steps.push_back(*step);
  std::sort(steps.begin(), steps.end(), std::greater<>());
  return steps;
}

// Every tensor of trainer_state.safetensors, in file order: name, shape, and the values in `state`,
// which may be const or not.
template <class State, class Visit>
void for_each_tensor(State& state, const Visit& visit) {
  const auto values = tensors_of(state.adapter), first = tensors_of(state.first_moment),
             second = tensors_of(state.second_moment);
  for (size_t i = 0; i < values.size(); ++i) {
    const auto& t = values[i];
    visit(t.name + ".weight", t.shape, *t.values);
    visit(t.name + ".exp_avg", t.shape, *first[i].values);
    visit(t.name + ".exp_avg_sq", t.shape, *second[i].values);
  }
}

std::string write_state(const fs::path& path, const TrainingState& state) {
  std::vector<SafetensorsWriter::Entry> entries;
  for_each_tensor(state, [&](const std::string& name, const std::vector<int64_t>& shape,
                             const std::vector<float>& values) {
    int64_t elements = 1;
    for (const int64_t n : shape) elements *= n;
    if (int64_t(values.size()) != elements)
      throw std::logic_error("save_checkpoint: " + name + " does not have its shape's size");
    entries.push_back({name, DType::F32, shape});
  });
  SafetensorsWriter out(path, entries, {{"format", "lorashard trainer state"}});
  for_each_tensor(state, [&](const std::string&, const std::vector<int64_t>&,
                             const std::vector<float>& values) {
    out.write(values.data(), values.size() * sizeof(float));
  });
  out.close();
  return out.sha256();
}

// Fills the moments of `state`, whose adapter is already read.
void read_state(const fs::path& path, TrainingState& state) {
  const SafetensorsFile file = SafetensorsFile::open(path);
  state.first_moment = state.second_moment = state.adapter;
  size_t seen = 0;
  for_each_tensor(state, [&](const std::string& name, const std::vector<int64_t>& shape,
                             std::vector<float>& values) {
    const std::string where = path.string() + ": " + name;
    const TensorInfo* t = file.find(name);
    if (!t) fail_input(where, "is missing");
    if (t->dtype != DType::F32 || t->shape != shape)
      fail_input(where, "has another type or shape than the factor");
    ++seen;
    std::vector<float> read(t->bytes / sizeof(float));
    std::memcpy(read.data(), file.data(*t), t->bytes);
    const bool squares = name.ends_with("_sq");
    for (const float v : read)
      if (!std::isfinite(v) || (squares && v < 0))
        fail_input(where, squares ? "holds a value that is negative or not finite"
                                  : "holds a value that is not finite");
    if (name.ends_with(".weight") &&
        std::memcmp(read.data(), values.data(), read.size() * sizeof(float)) != 0)
      fail_input(where, "differs from the same factor in adapter_model.safetensors");
    values = std::move(read);
  });
  if (seen != file.tensors().size())
    fail_input(path.string(), "holds tensors of other factors than the adapter's");
}

TrainingCounters load_counters(const fs::path& dir) {
  const TrainingManifest m = verify_training_manifest(dir);
  return {.step = m.step(),
          .sequences_consumed = m.sequences_consumed(),
          .data_begins = m.data_begins(),
          .sequences = m.sequences(),
          .tokens = m.tokens(),
          .steps_skipped = m.steps_skipped(),
          .seed = m.seed(),
          .base_digest = m.base_digest(),
          .data_digest = m.data_digest(),
          .config_digest = m.config_digest(),
          .settings = {m.setting().begin(), m.setting().end()},
          .changes = {m.change().begin(), m.change().end()}};
}

TrainingState load_checkpoint(const fs::path& dir, const std::vector<LinearModule>& modules,
                              const std::vector<TensorSpec>& tensors) {
  TrainingState state;
  state.counters = load_counters(dir);
  if (has_weight_state(dir))
    fail_input((dir / kManifestFile).string(),
               "is of full fine-tuning; continue the run with train.method: FULL");
  state.adapter = read_adapter(dir, modules, tensors);
  read_state(dir / kStateFile, state);
  return state;
}

// What an error says about `dir`, without the path of the directory that the reader knows.
std::string within(const fs::path& dir, const std::string& message) {
  const std::string prefix = dir.string() + "/";
  return message.starts_with(prefix) ? message.substr(prefix.size()) : message;
}

// Files of a user's in a checkpoint: names that `ours`, a checkpoint just written, does not have.
// Hidden ones are what systems leave about.
std::vector<fs::path> files_of_users(const fs::path& dir, const fs::path& ours) {
  std::vector<fs::path> files;
  std::error_code ec;
  for (const auto& entry : fs::directory_iterator(dir, ec)) {
    const fs::path name = entry.path().filename();
    if (!name.string().starts_with(".") && !fs::exists(ours / name)) files.push_back(entry.path());
  }
  return files;
}

// Removes `path` in two steps, so that a run killed meanwhile leaves no part of a checkpoint under
// a checkpoint's name. Says so if it cannot.
void remove_directory(const fs::path& path, std::vector<std::string>& notes) {
  fs::path aside = path.parent_path() / ".";
  aside += path.filename();
  aside += ".removed";
  std::error_code ec;
  fs::remove_all(aside, ec);
  fs::rename(path, aside, ec);
  if (!ec) fs::remove_all(aside, ec);
  if (ec) notes.push_back(path.string() + ": cannot be removed: " + ec.message());
}

// Hidden names are ours: what create_directory_atomic, write_file_atomic and remove_directory leave
// when a run is killed. No other process writes here.
void remove_leftovers(const fs::path& dir, std::vector<std::string>& notes) {
  std::vector<fs::path> leftovers;
  std::error_code ec;
  for (const auto& entry : fs::directory_iterator(dir, ec)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(".step-") || name.starts_with(".latest"))
      leftovers.push_back(entry.path());
  }
  for (const fs::path& path : leftovers) {
    fs::remove_all(path, ec);
    if (ec) notes.push_back(path.string() + ": cannot be removed: " + ec.message());
  }
}

}  // namespace

std::vector<std::string> save_checkpoint(const fs::path& run_dir, const TrainingState& state,
                                         int64_t keep_last) {
  const auto fill = [&](const fs::path& dir) {
    std::map<std::string, std::string> digests = write_adapter(dir, state.adapter);
    digests[kStateFile] = write_state(dir / kStateFile, state);
    return digests;
  };
  return save_checkpoint(run_dir, state.counters, fill, keep_last);
}

std::vector<std::string> save_checkpoint(const fs::path& run_dir, const TrainingCounters& counters,
                                         const FillCheckpoint& fill_files, int64_t keep_last) {
  const fs::path dir = checkpoints_dir(run_dir);
  const std::string name = step_name(counters.step);
  std::vector<std::string> notes;
  std::error_code ec;
  fs::create_directories(dir, ec);
  if (ec) fail_run(dir.string(), "cannot be created: " + ec.message());
  remove_leftovers(dir, notes);

  const auto fill = [&](const fs::path& temporary) {
    write_training_manifest(temporary, counters, fill_files(temporary));
  };
  const fs::path target = dir / name;
  if (fs::exists(target, ec)) {
    // The new one is whole before the old one goes.
    fs::path fresh = dir / ".";
    fresh += name + ".new";
    try {
      create_directory_atomic(fresh, fill);
    } catch (const Error& e) {
      rethrow_renamed(e, fresh, target);
    }
    for (const fs::path& file : files_of_users(target, fresh))
      fs::rename(file, fresh / file.filename(), ec);
    remove_directory(target, notes);
    fs::rename(fresh, target, ec);
    if (ec) fail_run(target.string(), "cannot be replaced: " + ec.message());
  } else {
    create_directory_atomic(target, fill);
  }
  write_file_atomic(dir / "latest", name + "\n");

  if (keep_last > 0) {
    int64_t kept = 0;
    for (const int64_t step : list_steps(dir)) {
      if (step > counters.step || ++kept <= keep_last) continue;
      const fs::path old = dir / step_name(step);
      const std::vector<fs::path> files = files_of_users(old, target);
      if (files.empty()) {
        remove_directory(old, notes);
      } else if (kept == keep_last + 1) {  // reported once, when its turn comes
        notes.push_back(old.string() + ": is kept, " + files[0].filename().string() +
                        " in it is not of this run");
      }
    }
  }
  return notes;
}

namespace {

std::optional<LoadedCheckpoint> load_newest(
    const fs::path& run_dir, const std::function<TrainingState(const fs::path&)>& load) {
  const fs::path dir = checkpoints_dir(run_dir);
  const std::vector<int64_t> steps = list_steps(dir);
  std::vector<std::string> damaged;
  for (const int64_t step : steps) {
    const std::string name = step_name(step);
    try {
      LoadedCheckpoint loaded{load(dir / name), dir / name, {}};
      if (loaded.state.counters.step != step)
        fail_input(kManifestFile, "is that of step " + std::to_string(loaded.state.counters.step));
      for (const std::string& note : damaged) loaded.notes.push_back(note + "; using " + name);
      std::error_code ec;
      if (fs::exists(dir / "latest", ec)) {
        std::string latest = read_text(dir / "latest");
        if (latest.ends_with('\n')) latest.pop_back();
        const auto named = step_of(latest);
        if (!named || !std::count(steps.begin(), steps.end(), *named))
          loaded.notes.push_back("checkpoints/latest: names no checkpoint of this run; using " +
                                 name);
      } else {
        loaded.notes.push_back("checkpoints/latest: is missing; using " + name);
      }
      return loaded;
    } catch (const Error& e) {
      damaged.push_back("checkpoints/" + name + ": " + within(dir / name, e.what()));
    }
  }
  if (damaged.empty()) return std::nullopt;
  std::string all;
  for (const std::string& note : damaged) all += (all.empty() ? "" : "; ") + note;
  fail_input(dir.string(), "no whole checkpoint is left: " + all);
}

}  // namespace

std::optional<LoadedCheckpoint> load_newest_checkpoint(const fs::path& run_dir,
                                                       const std::vector<LinearModule>& modules,
                                                       const std::vector<TensorSpec>& tensors) {
  return load_newest(run_dir,
                     [&](const fs::path& dir) { return load_checkpoint(dir, modules, tensors); });
}

std::optional<LoadedCheckpoint> load_newest_weights_checkpoint(
    const fs::path& run_dir, const std::vector<TensorSpec>& tensors) {
  return load_newest(run_dir, [&](const fs::path& dir) {
    TrainingState state;
    state.counters = load_counters(dir);
    if (!has_weight_state(dir))
      fail_input((dir / kManifestFile).string(),
                 "is of an adapter; continue the run with train.method: LORA");
    const WeightStateFiles checked(dir, tensors);
    return state;
  });
}

bool is_checkpoint(const fs::path& dir) {
  std::error_code ec;
  return fs::exists(dir / kStateFile, ec) ||
         (fs::is_directory(dir, ec) && step_of(fs::absolute(dir).lexically_normal().filename()));
}

std::vector<std::string> inspect_checkpoint(const fs::path& path) {
  fs::path dir = fs::absolute(path).lexically_normal();
  if (!dir.has_filename()) dir = dir.parent_path();
  const TrainingManifest manifest = verify_training_manifest(dir);
  std::vector<std::string> content;
  if (has_weight_state(dir)) {
    content = inspect_weight_state(dir);
  } else {
    load_checkpoint(dir, modules_of_factors(dir), {});
    content = inspect_adapter(dir);
  }
  const auto or_none = [](const std::string& s) { return s.empty() ? "unknown" : s; };
  std::vector<std::string> lines = {
      "training checkpoint: " + dir.string(),
      "step " + std::to_string(manifest.step()) + ", " +
          std::to_string(manifest.sequences_consumed()) + " sequences, " +
          std::to_string(manifest.tokens()) + " tokens, seed " + std::to_string(manifest.seed()),
      "base digest: " + or_none(manifest.base_digest()),
      "data digest: " + or_none(manifest.data_digest()),
      "config digest: " + or_none(manifest.config_digest()),
  };
  if (manifest.steps_skipped() > 0)
    lines.push_back(std::to_string(manifest.steps_skipped()) +
                    " steps made no update: no label in their batch");
  for (const std::string& change : manifest.change()) lines.push_back("changed: " + change);
  for (const FileDigest& file : manifest.file())
    lines.push_back(file.name() + ": " + std::to_string(file.bytes()) + " bytes, SHA-256 " +
                    file.sha256() + ", verified");
  lines.insert(lines.end(), content.begin(), content.end());
  return lines;
}

}  // namespace lorashard
