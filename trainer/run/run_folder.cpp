#include "trainer/run/run_folder.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>

#include "configs/error.h"

namespace lorashard {
namespace {

// TRL's names, with _ where it has /.
void add_pairs(nlohmann::ordered_json& line, const std::string& prefix,
               const PreferenceTotals& mean) {
  line[prefix + "rewards_chosen"] = mean.rewards_chosen;
  line[prefix + "rewards_rejected"] = mean.rewards_rejected;
  line[prefix + "rewards_margin"] = mean.rewards_chosen - mean.rewards_rejected;
  line[prefix + "rewards_accuracy"] = mean.correct;
  line[prefix + "logps_chosen"] = mean.logps_chosen;
  line[prefix + "logps_rejected"] = mean.logps_rejected;
}

}  // namespace

PreferenceTotals mean_of(const PreferenceTotals& sum, int64_t pairs) {
  const auto n = double(pairs);
  return {.rewards_chosen = sum.rewards_chosen / n,
          .rewards_rejected = sum.rewards_rejected / n,
          .correct = sum.correct / n,
          .logps_chosen = sum.logps_chosen / n,
          .logps_rejected = sum.logps_rejected / n};
}

std::string format_pairs(const PreferenceTotals& mean) {
  return fmt::format(" rewards_margin {:.4f} rewards_accuracy {:.4f}",
                     mean.rewards_chosen - mean.rewards_rejected, mean.correct);
}

std::string format_step(const StepMetrics& m, int64_t steps) {
  std::string text = fmt::format(
      "step {}/{} loss {} lr {:.3e} grad_norm {:.4f} tokens {} {:.0f} tok/s {:.3f} s rss "
      "{:.0f} MiB",
      m.step, steps, m.loss ? fmt::format("{:.4f}", *m.loss) : "none", m.learning_rate, m.grad_norm,
      m.tokens, m.tokens_per_s, m.step_time_s, m.peak_rss_mib);
  if (!m.loss) text += " (no label in the batch, no update)";
  if (m.pairs) text += format_pairs(*m.pairs);
  if (m.eval_loss) text += fmt::format(" eval_loss {:.4f}", *m.eval_loss);
  return text;
}

MetricsFile::MetricsFile(const fs::path& run_dir, int64_t keep_steps)
    : path_(run_dir / "metrics.jsonl") {
  std::string kept;
  if (fs::exists(path_)) {
    const std::string text = read_text(path_);
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = text.find('\n', begin);
      if (end == std::string::npos) break;  // a line that a kill cut short
      const auto line = nlohmann::json::parse(text.substr(begin, end - begin), nullptr, false);
      if (line.is_object() && line.contains("step") && line["step"].is_number_integer() &&
          line["step"].get<int64_t>() <= keep_steps) {
        kept.append(text, begin, end + 1 - begin);
      }
      begin = end + 1;
    }
  }
  write_file_atomic(path_, kept);
  file_ = std::fopen(path_.c_str(), "a");
  if (!file_) fail_run(path_.string(), std::strerror(errno));
}

MetricsFile::~MetricsFile() { std::fclose(file_); }

void MetricsFile::append(const StepMetrics& m) {
  nlohmann::ordered_json line;
  line["step"] = m.step;
  line["epoch"] = m.epoch;
  line["loss"] = m.loss ? nlohmann::ordered_json(*m.loss) : nlohmann::ordered_json(nullptr);
  line["learning_rate"] = m.learning_rate;
  line["grad_norm"] = m.grad_norm;
  line["tokens"] = m.tokens;
  line["counted_tokens"] = m.unmasked;
  line["step_time_s"] = m.step_time_s;
  line["tokens_per_s"] = m.tokens_per_s;
  line["peak_rss_mib"] = m.peak_rss_mib;
  if (m.pairs) add_pairs(line, "", *m.pairs);
  if (m.eval_loss) line["eval_loss"] = *m.eval_loss;
  if (m.eval_pairs) add_pairs(line, "eval_", *m.eval_pairs);
  const std::string text = line.dump() + "\n";
  if (std::fwrite(text.data(), 1, text.size(), file_) != text.size() || std::fflush(file_) != 0) {
    const int error = errno;
    fail_run(path_.string(), std::string("cannot be written: ") + std::strerror(error) +
                                 (error == ENOSPC || error == EDQUOT ? "; free space there" : ""));
  }
}

void check_run_folder(const Config& config, bool resume) {
  if (resume) return;
  const fs::path dir = config.run.output().dir();
  for (const char* name :
       {"config.textproto", "metrics.jsonl", "checkpoints", "adapter", "model"}) {
    if (fs::exists(dir / name)) {
      fail_input(config.where("output.dir"),
                 "'" + dir.string() + "' holds a run (" + name +
                     "); choose another output.dir, or continue it with --resume");
    }
  }
}

std::unique_ptr<FolderLock> open_run_folder(const Config& config, bool resume) {
  const fs::path dir = config.run.output().dir();
  check_run_folder(config, resume);
  std::error_code error;
  fs::create_directories(dir, error);
  if (error) {
    fail_input(config.where("output.dir"),
               "cannot create '" + dir.string() + "': " + error.message());
  }
  auto lock = std::make_unique<FolderLock>(dir, config.where("output.dir"));
  check_run_folder(config, resume);  // a job that held it may have made a run
  return lock;
}

void write_run(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& e) {
    if (e.exit_status != kExitFailure) throw;
    const std::string what = e.what();
    Error more(
        e.exit_status, "",
        what + (what.find("; ") != std::string::npos ? ", then continue with --resume"
                                                     : "; mend that, then continue with --resume"));
    more.on_all_ranks = e.on_all_ranks;
    throw more;
  }
}

void write_run_config(const RunConfig& resolved, int64_t step) {
  const fs::path dir = resolved.output().dir(), path = dir / "config.textproto";
  const std::string text = to_textproto(resolved);
  if (fs::exists(path)) {
    const std::string before = read_text(path);
    if (before == text) return;
    fs::create_directories(dir / "configs");
    fs::path kept;
    for (int n = 1; n == 1 || fs::exists(kept); ++n) {
      kept = dir / "configs" /
             fmt::format("until-step-{:06}{}.textproto", step, n == 1 ? "" : fmt::format("-{}", n));
    }
    write_file_atomic(kept, before);
  }
  write_file_atomic(path, text);
}

}  // namespace lorashard
