#include "trainer/run/train.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <utility>

#include "checkpoint/training_state.h"
#include "configs/error.h"
#include "kernels/profile.h"
#include "parallel/agree.h"
#include "parallel/liveness.h"
#include "trainer/run/collective_trace.h"
#include "trainer/run/data_check.h"
#include "trainer/run/evaluate.h"
#include "trainer/run/full_files.h"
#include "trainer/run/full_weights.h"
#include "trainer/run/lora_plan.h"
#include "trainer/run/profile_file.h"
#include "trainer/run/resume.h"
#include "trainer/run/run_folder.h"
#include "trainer/run/run_options.h"
#include "trainer/run/session.h"
#include "trainer/run/setting_changes.h"
#include "trainer/run/stop.h"

namespace lorashard {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Every rank has the same all-reduced values here, so every rank throws alike.
void check_step(const StepSums& sum, double norm, int64_t step) {
  if (std::isfinite(sum.totals.loss) && std::isfinite(norm)) return;
  fail_on_all_ranks(kExitFailure, fmt::format("step {}", step),
                    fmt::format("loss {} and gradient norm {} are not finite; lower "
                                "optimizer.learning_rate, or look at the data of this step",
                                sum.totals.loss / double(std::max<int64_t>(1, sum.terms)), norm));
}

std::string describe(const BaseModel& base, const Factors* factors, const Model& model,
                     const Mesh& mesh, int threads) {
  int64_t weights = 0;
  for (const auto& t : base.tensors()) weights += t.rows() * t.cols();
  const std::string trained = factors
                                  ? fmt::format("{} modules adapted, {} trained weights ({:.3f} %)",
                                                factors->modules().size(), factors->size(),
                                                100 * double(factors->size()) / double(weights))
                                  : "full fine-tuning, all weights trained";
  return fmt::format(
      "base {} ({}, {:.1f} M weights); {}\n"
      "TP={} x DP={}, {} thread(s) a rank; activations {:.0f} MiB a rank; recomputed: {} layers, "
      "gate and up of {} more, of {}",
      base.path(), base.config().architecture, double(weights) * 1e-6, trained, mesh.tp_size,
      mesh.dp_size, threads, double(model.activation_bytes()) / double(1 << 20),
      model.recomputed_layers(), model.recomputed_mlps(),
      base.config().layers - model.first_layer());
}

// One run. The constructor is start-up, phase by phase, each agreed on by all ranks; then run().
class Trainer {
 public:
  Trainer(const Config& config, Session& session, const TrainOptions& options);
  int run();

 private:
  // Start-up.
  void open_inputs();
  void make_factors();
  void start_or_resume();
  void make_weights();
  void start_or_resume_weights();
  void make_model();
  // A step.
  StepMessage accumulate_gradients();
  StepMetrics optimizer_step(const StepSums& sum);
  int add_eval_loss(StepMetrics& line);
  void report(const StepMetrics& line, bool ending);
  void save_checkpoint();
  // The end.
  int stop(int signal);
  void save_result();
  void finish();

  // `write` touches the run folder (write_run). Collective.
  void write_on_first_rank(const std::function<void()>& write) {
    on_first_rank(world_, [&] { write_run(write); });
  }
  Model& model() { return loaded_->model; }
  bool pairs() const { return is_preference(run_.data().format()); }
  bool full() const { return run_.train().method() == RunConfig::Train::FULL; }
  bool every(int64_t interval) const { return interval > 0 && counters_.step % interval == 0; }

  const Config& config_;
  const RunConfig& run_;
  Session& session_;
  Stream& stream_;
  Communicator& world_;
  const Mesh& mesh_;  // of the session, which open_inputs has formed
  Console& console_;
  const TrainOptions& options_;
  const bool first_;  // the rank that writes and prints
  const fs::path run_dir_;
  CollectiveTrace trace_;
  Profiler profiler_;
  std::shared_ptr<const Dataset> train_data_, eval_data_;
  LoraPlan plan_;
  TrainingCounters counters_;
  // What is trained: an adapter, or with method FULL all weights.
  std::optional<Factors> factors_;
  std::optional<TrainingBuffers> buffers_;
  std::optional<FullWeights> weights_;
  std::unique_ptr<LoadedModel> loaded_;
  std::optional<BatchStream> batches_;
  std::optional<MetricsFile> metrics_;  // on the first rank
  std::unique_ptr<FolderLock> lock_;    // on the first rank
  int64_t steps_ = 0;                   // of the run
  bool fresh_ = false;                  // the factors are new, not read
  bool finished_ = false;               // before this call: nothing is to be done
  bool look_within_step_ = false;       // the step before was long; the same on all ranks
  int64_t saved_step_ = -1;             // of the newest checkpoint that this call wrote
};

Trainer::Trainer(const Config& config, Session& session, const TrainOptions& options)
    : config_(config),
      run_(config.run),
      session_(session),
      stream_(session.stream),
      world_(session.world),
      mesh_(session.mesh),
      console_(session.console),
      options_(options),
      first_(session.first()),
      run_dir_(run_.output().dir()) {
  open_inputs();
  if (full()) {
    make_weights();
    start_or_resume_weights();
  } else {
    make_factors();
    start_or_resume();
  }
  if (finished_) return;
  make_model();
  console_.line(backend_line(session_.device, world_.size()));
  console_.line(
      describe(*session_.base, factors_ ? &*factors_ : nullptr, model(), mesh_, stream_.threads()));
  if (stream_.backend() == Backend::CUDA) {
    console_.line(model().attention_choice());
  }
  if (counters_.step > 0) console_.line(fmt::format("resumed at step {}", counters_.step));
  write_on_first_rank([&] { metrics_.emplace(run_dir_, counters_.step); });
  if (run_.output().trace_collectives()) trace_.attach(mesh_);
  if (!options_.profile.empty()) profiler_.attach();
}

void Trainer::open_inputs() {
  run_agreed(world_, [&] {
    check_world(config_, world_.size());
    if (first_) check_run_folder(config_, options_.resume);
    session_.open_base(run_.model().path(), run_.parallel().tensor(),
                       config_.where("parallel.tensor"));
    session_.check_positions(run_.data().seq_len(), config_.where("data.seq_len"), "data.seq_len");
    const DatasetOptions data = dataset_options(run_, *session_.base);
    train_data_ = Dataset::open(run_.data().train(), data);
    if (!run_.data().eval().empty()) {
      eval_data_ = Dataset::open(run_.data().eval(), data);
    }
  });
  std::vector<std::string> notes = session_.base->notes();
  counters_.seed = run_.train().seed();
  counters_.config_digest = settings_digest(run_);
  counters_.data_digest = agree_on_inputs(session_.ranks, training_files(run_))[0];
  session_.digest_base();
  counters_.base_digest = session_.base_digest;
  for (const auto& [data, path] :
       {std::pair{train_data_, run_.data().train()}, std::pair{eval_data_, run_.data().eval()}}) {
    if (!data) continue;
    const auto more =
        check_data(*data, path, run_, *session_.base, session_.ranks, stream_.threads(), console_);
    for (const std::string& note : more) {  // those of the tokenizer come with each file
      if (std::find(notes.begin(), notes.end(), note) == notes.end()) notes.push_back(note);
    }
  }
  console_.notes(notes);
  session_.form_mesh(run_.parallel().tensor());
}

void Trainer::make_factors() {
  run_agreed(world_, [&] {
    plan_ = plan_lora(config_, *session_.base, session_.base_digest);
    if (first_) lock_ = open_run_folder(config_, options_.resume);
  });
  if (lock_ && !lock_->note().empty()) console_.notes({lock_->note()});
  console_.notes(plan_.notes);
  factors_.emplace(stream_, adapter_layout(session_.base->config(), plan_.modules, plan_.config,
                                           mesh_.tp_rank, mesh_.tp_size));
  buffers_.emplace(stream_, factors_->size(), world_.size());
}

void Trainer::start_or_resume() {
  ResumedRun resumed;
  counters_.sequences = train_data_->size();
  on_first_rank(world_, [&] {
    const RunConfig resolved = resolved_config(run_, plan_);
    counters_.settings = recorded_settings(resolved);
    if (options_.resume) {
      resumed = load_run(run_dir_, session_.base->config(), *factors_, *buffers_, counters_,
                         config_, options_.accept_changes);
    }
    if (!resumed.finished) write_run([&] { write_run_config(resolved, counters_.step); });
  });
  if (options_.resume) {
    console_.notes(resumed.notes);
    share_run(resumed, *factors_, *buffers_, counters_, world_);
  }
  finished_ = resumed.finished;
  steps_ = finished_ ? resumed.steps : run_steps(run_, counters_);
  fresh_ = !resumed.found && !plan_.start;
  if (resumed.found) return;
  if (plan_.start) {
    factors_->load(*plan_.start);
  } else {
    factors_->initialize(run_.train().seed(), *session_.base);
  }
}

void Trainer::make_weights() {
  run_agreed(world_, [&] {
    check_full(session_.base->config(), config_.where("train.method"));
    if (first_) lock_ = open_run_folder(config_, options_.resume);
  });
  if (lock_ && !lock_->note().empty()) console_.notes({lock_->note()});
  console_.notes(full_notes(config_));
  form_data_groups(session_.mesh);
  weights_.emplace(stream_, session_.base->config(), mesh_, session_.ranks.world,
                   full_weight_type(run_));
}

void Trainer::start_or_resume_weights() {
  counters_.sequences = train_data_->size();
  counters_.settings = recorded_settings(run_);
  ResumedRun resumed;
  const auto ready = [&] { write_run([&] { write_run_config(run_, counters_.step); }); };
  if (options_.resume) {
    resumed = resume_weights(run_dir_, *weights_, counters_, config_, options_.accept_changes,
                             session_.ranks.world, ready);
    console_.notes(resumed.notes);
  } else {
    on_first_rank(world_, ready);
  }
  finished_ = resumed.finished;
  steps_ = finished_ ? resumed.steps : run_steps(run_, counters_);
  if (resumed.found) return;
  run_agreed(world_, [&] { load_base_weights(*weights_, *session_.base); });
}

void Trainer::make_model() {
  ModelOptions options = training_options(run_, stream_, session_.ranks.host_ranks);
  if (weights_ && stream_.backend() == Backend::CPU && options.memory_budget > 0) {
    // The budget is of memory that looks free until the first step.
    options.memory_budget -= std::min(options.memory_budget - 1, weights_->state_bytes() / 10 * 6);
  }
  loaded_ = weights_ ? load_model(session_, weights_->weights(), options)
                     : load_model(session_, &*factors_, buffers_->gradients(), options);
  if (fresh_) model().initialize_magnitudes();
  batches_.emplace(
      train_data_, run_.train().seed(), run_.data().shuffle(), run_.train().global_batch_size(),
      run_.train().micro_batch_size(), mesh_.dp_rank, mesh_.dp_size,
      StreamPosition{counters_.step, counters_.sequences_consumed, counters_.data_begins},
      run_.train().has_epochs());
}

// Forward and backward over this rank's micro-batches of the step. A tensor-parallel group that
// gets a stop signal in a long step leaves it; the step's all-reduce reports that to the others.
StepMessage Trainer::accumulate_gradients() {
  const auto start = std::chrono::steady_clock::now();
  StepMessage mine;
  if (weights_)
    weights_->clear_gradients();
  else
    clear_gradients(stream_, *buffers_);
  model().clear_loss();
  int signal = 0;
  for (int64_t m = 0; m < batches_->micro_batches(counters_.step); ++m) {
    if (look_within_step_ && (signal = stop_signal_of_group(mesh_, options_.stop_signal)) != 0) {
      mine.left = true;
      break;
    }
    const MicroBatch batch = batches_->micro_batch(counters_.step, m);
    model().forward_backward(batch);
    if (mesh_.tp_rank != 0) continue;  // counted once in a tensor-parallel group
    mine.unmasked += batch.unmasked;
    mine.tokens += int64_t(batch.ids.size());
  }
  if (!mine.left) signal = options_.stop_signal();
  mine.interrupted = signal == SIGINT;
  mine.terminated = signal == SIGTERM;
  constexpr double kSlow_s = 0.5;
  mine.slow = seconds_since(start) > kSlow_s;
  mine.rss_mib = peak_rss_mib();
  return mine;
}

// Clips, updates, and counts the step. A batch without an unmasked token has no gradient: factors
// and moments stay, and AdamW's own count of updates too; schedule and data go on as after any
// step.
StepMetrics Trainer::optimizer_step(const StepSums& sum) {
  const int64_t step = counters_.step;
  const double norm = gradient_norm(sum);
  check_step(sum, norm, step + 1);
  const double rate = learning_rate(run_, step, steps_);
  counters_.step = step + 1;
  if (sum.unmasked > 0 && weights_) {
    weights_->apply(optimizer_settings(run_), run_.optimizer().decay_norms_and_biases(), rate,
                    counters_.step - counters_.steps_skipped, sum.unmasked, norm);
  } else if (sum.unmasked > 0) {
    apply_step(stream_, *factors_, *buffers_, optimizer_settings(run_), rate,
               counters_.step - counters_.steps_skipped, sum.terms, norm);
    model().factors_changed();
  } else {
    ++counters_.steps_skipped;
  }
  counters_.sequences_consumed += batches_->sequences(step);
  counters_.tokens += sum.unmasked;
  StepMetrics line;
  line.step = counters_.step;
  line.epoch = batches_->epoch_after(step);
  if (sum.unmasked > 0) line.loss = sum.totals.loss / double(sum.terms);
  if (pairs()) line.pairs = mean_of(sum.totals.pairs, sum.terms);
  line.learning_rate = rate;
  line.grad_norm = norm;
  line.tokens = sum.tokens;
  line.unmasked = sum.unmasked;
  line.peak_rss_mib = sum.rss_mib;
  return line;
}

void Trainer::save_checkpoint() {
  if (saved_step_ == counters_.step) return;
  saved_step_ = counters_.step;
  const int64_t keep_last = run_.checkpoint().keep_last();
  if (!first_) {
    if (weights_) save_weights(run_dir_, *weights_, counters_, keep_last, false);
    return;
  }
  const std::string name = fmt::format("checkpoint step-{:06}", counters_.step);
  LongWork work(console_, name + " is still being written");
  std::vector<std::string> notes;
  write_run([&] {
    notes = weights_ ? save_weights(run_dir_, *weights_, counters_, keep_last, true)
                     : save_run(run_dir_, *factors_, *buffers_, counters_, keep_last);
  });
  const std::string took = work.end();
  console_.notes(notes);
  console_.line(name + took);
}

// Ends the run by a signal: the checkpoint of the last finished step is on disk when it returns.
// An error of the first rank's, who writes it, ends the job with its own status.
int Trainer::stop(int signal) {
  save_checkpoint();
  finish();
  console_.line(fmt::format("stopped by {} after step {}; continue with --resume",
                            signal == SIGTERM ? "SIGTERM" : "SIGINT", counters_.step));
  return 128 + signal;
}

// The signal that ended the evaluation on some rank, and then no loss; else 0.
int Trainer::add_eval_loss(StepMetrics& line) {
  const EvalSum eval =
      evaluate_loss(model(), eval_data_, run_.data().eval(), run_.train().micro_batch_size(), mesh_,
                    options_.stop_within_steps ? options_.stop_signal : std::function<int()>{});
  if (eval.stop_signal == 0) {
    line.eval_loss = eval.mean();
    if (pairs()) line.eval_pairs = mean_of(eval.totals.pairs, eval.terms);
  }
  return eval.stop_signal;
}

// `ending`: no further step follows.
void Trainer::report(const StepMetrics& line, bool ending) {
  if (metrics_) write_run([&] { metrics_->append(line); });
  if (ending || line.eval_loss || every(run_.train().log_every())) {
    console_.line(format_step(line, steps_));
  }
  console_.progress(line.step, steps_, fmt::format("loss {:.4f}", line.loss.value_or(0)));
}

int Trainer::run() {
  if (finished_) {
    console_.line(
        fmt::format("the run in {} is finished ({} of {} steps) and left as it is; raise "
                    "{} to continue it",
                    run_dir_.string(), steps_, steps_, length_setting(run_)));
    return 0;
  }
  const int64_t check_every = run_.train().replica_check_every();
  for (bool first_step = true; counters_.step < steps_; first_step = false) {
    const auto start = std::chrono::steady_clock::now();
    const ProfileSpan span("step", "step");
    set_step_for_waits(counters_.step + 1);
    const StepMessage mine = accumulate_gradients();
    if (first_step) options_.first_step_ends();
    const LossTotals* const totals = mesh_.tp_rank == 0 ? model().loss_totals() : nullptr;
    StepSums sum =
        weights_ ? weights_->reduce(mine, totals)
                 : reduce_step(stream_, *buffers_, world_, mine, totals, pairs() ? kLossTotals : 1);
    if (pairs()) sum.terms = batches_->sequences(counters_.step);
    look_within_step_ = options_.stop_within_steps && sum.slow;
    int signal = sum.terminated ? SIGTERM : sum.interrupted ? SIGINT : 0;
    if (sum.left) return stop(signal);
    StepMetrics line = optimizer_step(sum);
    line.step_time_s = seconds_since(start);
    line.tokens_per_s = double(sum.tokens) / line.step_time_s;
    const bool last = counters_.step == steps_;
    if (eval_data_ && signal == 0 && (last || every(run_.train().eval_every()))) {
      signal = add_eval_loss(line);
    }
    const bool ending = last || signal != 0;
    report(line, ending);
    if (every(check_every) || (check_every > 0 && (first_step || last))) {
      if (weights_)
        weights_->check_replicas();
      else
        check_replicas(*factors_, *buffers_, world_);
    }
    if (ending || every(run_.checkpoint().every())) save_checkpoint();
    if (signal != 0 && !last) return stop(signal);
  }
  save_result();
  finish();
  console_.line(fmt::format("{} written to {}", weights_ ? "model" : "adapter",
                            (run_dir_ / (weights_ ? "model" : "adapter")).string()));
  return 0;
}

void Trainer::save_result() {
  if (!weights_) return write_on_first_rank([&] { save_final_adapter(run_dir_, *factors_); });
  const auto save = [&] {
    save_final_model(run_dir_, *weights_, *session_.base, model_dtype(run_), counters_.step,
                     first_);
  };
  if (first_)
    write_run(save);
  else
    save();
}

void Trainer::finish() {
  set_step_for_waits(0);
  trace_.detach();
  profiler_.detach();
  if (counters_.steps_skipped > 0) {
    console_.line(fmt::format("note: {} of {} steps had no label in their batch and made no update",
                              counters_.steps_skipped, counters_.step));
  }
  // Collective also without a trace: no rank leaves before the first has written its checkpoint.
  write_on_first_rank([&] {
    if (run_.output().trace_collectives()) trace_.write(run_dir_);
  });
  if (options_.profile.empty()) return;
  write_profile(options_.profile, profiler_.events, stream_.backend(), world_);
  console_.line("profile written to " + options_.profile);
}

}  // namespace

int train(const Config& config, const Ranks& ranks, const TrainOptions& options) {
  Session session(
      ranks,
      session_options(config, {{"--resume", options.resume ? "given" : "not given", "--resume"},
                               {"--profile", options.profile, "--profile"}}));
  return Trainer(config, session, options).run();
}

}  // namespace lorashard
