#include "trainer/train.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <chrono>
#include <cmath>
#include <csignal>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "checkpoint/training_state.h"
#include "configs/error.h"
#include "parallel/agree.h"
#include "trainer/console.h"
#include "trainer/evaluate.h"
#include "trainer/model.h"
#include "trainer/optimizer.h"
#include "trainer/resume.h"
#include "trainer/run_folder.h"
#include "trainer/schedule.h"

namespace lorashard {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double peak_rss_mib() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return double(usage.ru_maxrss) / 1024;
}

ScheduleKind schedule_kind(const RunConfig& run) {
  switch (run.schedule().kind()) {
    case RunConfig::Schedule::LINEAR: return ScheduleKind::Linear;
    case RunConfig::Schedule::COSINE: return ScheduleKind::Cosine;
    default: return ScheduleKind::Constant;
  }
}

ModelOptions model_options(const RunConfig& run, int host_ranks) {
  ModelOptions o;
  o.activation_type = activation_type(run);
  o.max_tokens = run.train().micro_batch_size() * run.data().seq_len();
  o.max_positions = run.data().seq_len();
  o.training = true;
  o.recompute = run.compute().recompute() == RunConfig::Compute::Recompute::FULL   ? Recompute::Full
                : run.compute().recompute() == RunConfig::Compute::Recompute::NONE ? Recompute::None
                                                                                   : Recompute::Auto;
  o.memory_budget = activation_budget(host_ranks);
  o.dropout = float(run.lora().dropout());
  o.seed = run.train().seed();
  return o;
}

OptimizerSettings optimizer_settings(const RunConfig& run) {
  const auto& o = run.optimizer();
  return {float(o.beta1()), float(o.beta2()), float(o.epsilon()), float(o.weight_decay()),
          o.max_grad_norm()};
}

// Every rank has the same sums here, so every rank throws alike.
void check_step(const StepCounts& sum, double norm, int64_t step, const std::string& data_path) {
  const auto fail = [](int status, const std::string& where, const std::string& what) {
    Error error(status, where, what);
    error.on_all_ranks = true;
    throw error;
  };
  if (sum.counted == 0) {
    fail(kExitInput, data_path,
         fmt::format("no label counts in the batch of step {}; at least one must differ from -100 "
                     "and have a token before it",
                     step));
  }
  if (!std::isfinite(sum.loss_sum) || !std::isfinite(norm)) {
    fail(kExitFailure, fmt::format("step {}", step),
         fmt::format("loss {} and gradient norm {} are not finite; lower optimizer.learning_rate, "
                     "or look at the data of this step",
                     sum.loss_sum / double(sum.counted), norm));
  }
}

void write_trace(const fs::path& run_dir, const std::vector<CollectiveCall>& world,
                 const std::vector<CollectiveCall>& tensor) {
  std::string text;
  const auto add = [&](const char* group, const std::vector<CollectiveCall>& calls) {
    for (const CollectiveCall& c : calls) {
      nlohmann::ordered_json line{
          {"group", group}, {"operation", c.operation}, {"label", c.label}, {"bytes", c.bytes}};
      text += line.dump() + "\n";
    }
  };
  add("world", world);
  add("tensor", tensor);
  write_file_atomic(run_dir / "trace-collectives.jsonl", text);
}

std::string describe(const BaseModel& base, const Factors& factors, const Model& model,
                     const Mesh& mesh, int threads) {
  int64_t weights = 0;
  for (const auto& t : base.tensors()) weights += t.rows() * t.cols();
  return fmt::format(
      "base {} ({}, {:.1f} M weights); {} modules adapted, {} trained weights ({:.3f} %)\n"
      "TP={} x DP={}, {} thread(s) a rank; activations {:.0f} MiB a rank, {} of {} layers recomputed",
      base.path(), base.config().architecture, double(weights) * 1e-6, factors.modules().size(),
      factors.size(), 100 * double(factors.size()) / double(weights), mesh.tp_size, mesh.dp_size,
      threads, double(model.activation_bytes()) / double(1 << 20),
      base.config().layers - model.first_layer() - model.kept_layers(),
      base.config().layers - model.first_layer());
}

}  // namespace

int train(const Config& config, const Ranks& ranks, const TrainOptions& options) {
  const RunConfig& run = config.run;
  Communicator& world = ranks.world;
  const bool first = world.rank() == 0;
  const fs::path run_dir = run.output().dir();
  Console console(first);

  // Start-up. Each agreed phase ends on all ranks or on none.
  std::unique_ptr<BaseModel> base;
  std::shared_ptr<const Dataset> train_data, eval_data;
  run_agreed(world, [&] {
    check_world(config, world.size());
    check_backend(config);
    base = BaseModel::open(run.model().path());
    check_tensor_degree(config, base->config());
    train_data = open_dataset(config, run.data().train(), *base);
    if (!run.data().eval().empty()) eval_data = open_dataset(config, run.data().eval(), *base);
  });
  for (const std::string& note : base->notes()) console.line("note: " + note);
  const std::string base_digest = base->digest(world);
  LoraPlan plan;
  run_agreed(world, [&] {
    plan = plan_lora(config, *base, base_digest);
    if (first) open_run_folder(config, options.resume);
  });

  const int threads = choose_threads(run.compute().threads(), ranks.host_ranks);
  Stream stream(threads);
  std::vector<CollectiveCall> world_trace, tensor_trace;
  Mesh mesh = make_mesh(world, int(run.parallel().tensor()));
  Factors factors(stream, base->config(), plan.modules, plan.config, mesh.tp_rank, mesh.tp_size,
                  step_tail_floats(world.size()));
  TrainingCounters counters;
  counters.seed = run.train().seed();
  counters.base_digest = base_digest;
  if (first) counters.data_digest = train_data->digest();
  counters.config_digest = settings_digest(run);
  ResumedRun resumed;
  run_agreed(world, [&] {
    if (first && options.resume) resumed = load_run(run_dir, base->config(), factors, counters, config);
  });
  for (const std::string& note : resumed.notes) console.line("note: " + note);
  if (!resumed.found && plan.start) factors.load(*plan.start);
  if (!resumed.found && !plan.start) factors.initialize(run.train().seed());
  if (options.resume) share_run(resumed, factors, counters, world);

  ModelWeights weights;
  std::optional<Model> model;
  run_agreed(world, [&] {
    weights = load_weights(*base, mesh.tp_rank, mesh.tp_size, &factors);
    model.emplace(stream, base->config(), weights, &factors, *mesh.tensor,
                  model_options(run, ranks.host_ranks));
  });
  console.line(describe(*base, factors, *model, mesh, threads));
  std::optional<MetricsFile> metrics;
  run_agreed(world, [&] {
    if (first) metrics.emplace(run_dir, counters.step);
  });
  if (resumed.found) console.line(fmt::format("resumed at step {}", counters.step));

  const BatchStream batches(train_data, run.train().seed(), run.data().shuffle(),
                            run.train().global_batch_size(), run.train().micro_batch_size(),
                            mesh.dp_rank, mesh.dp_size);
  const OptimizerSettings optimizer = optimizer_settings(run);
  const int64_t steps = run.train().steps();
  if (run.output().trace_collectives()) {
    world.set_trace(&world_trace);
    mesh.tensor->set_trace(&tensor_trace);
  }
  const auto every = [](int64_t step, int64_t interval) {
    return interval > 0 && step % interval == 0;
  };
  const auto save = [&] {
    if (!first) return;
    const auto notes = save_run(run_dir, factors, counters, run.checkpoint().keep_last());
    for (const std::string& note : notes) console.line("note: " + note);
    console.line(fmt::format("checkpoint step-{:06}", counters.step));
  };

  while (counters.step < steps) {
    const auto start = std::chrono::steady_clock::now();
    const int64_t step = counters.step;  // from 0
    StepCounts mine;
    std::fill_n(factors.gradients(), factors.size(), 0.0f);
    for (int64_t m = 0; m < batches.micro_batches(); ++m) {
      const MicroBatch batch = batches.micro_batch(step, m);
      const double loss = model->forward_backward(batch);
      if (mesh.tp_rank != 0) continue;  // counted once in a tensor-parallel group
      mine.loss_sum += loss;
      mine.counted += batch.counted;
      mine.tokens += int64_t(batch.ids.size());
    }
    const int signal = options.stop_signal();
    mine.interrupted = signal == SIGINT;
    mine.terminated = signal == SIGTERM;
    mine.rss_mib = peak_rss_mib();
    const StepCounts sum = reduce_step(stream, factors, world, mine);
    const double norm = gradient_norm(stream, factors, std::max<int64_t>(sum.counted, 1));
    check_step(sum, norm, step + 1, run.data().train());
    const double rate = run.optimizer().learning_rate() *
                        schedule_factor(schedule_kind(run), step, run.schedule().warmup_steps(),
                                        steps);
    apply_step(stream, factors, optimizer, rate, step + 1, sum.counted, norm);
    counters.step = step + 1;
    counters.sequences_consumed = counters.step * run.train().global_batch_size();
    counters.tokens += sum.counted;

    StepMetrics line;
    line.step = counters.step;
    line.loss = sum.loss_sum / double(sum.counted);
    line.learning_rate = rate;
    line.grad_norm = norm;
    line.tokens = sum.tokens;
    line.counted = sum.counted;
    line.step_time_s = seconds_since(start);
    line.tokens_per_s = double(sum.tokens) / line.step_time_s;
    line.peak_rss_mib = sum.rss_mib;
    const bool stopping = sum.interrupted || sum.terminated;
    const bool last = counters.step == steps;
    if (eval_data && !stopping && (last || every(counters.step, run.train().eval_every()))) {
      line.eval_loss = evaluate_loss(*model, eval_data, run.data().eval(),
                                     run.train().micro_batch_size(), mesh, stream)
                           .mean();
    }
    if (metrics) metrics->append(line);
    if (last || stopping || line.eval_loss || counters.step % run.train().log_every() == 0) {
      console.line(format_step(line, steps));
    }
    console.progress(counters.step, steps, fmt::format("loss {:.4f}", line.loss));
    if (every(counters.step, run.train().replica_check_every())) check_replicas(factors, world);
    if (last || stopping || every(counters.step, run.checkpoint().every())) save();
    if (stopping && !last) {
      world.barrier("stop");
      if (first && run.output().trace_collectives()) write_trace(run_dir, world_trace, tensor_trace);
      console.line(fmt::format("stopped by {} after step {}; continue with --resume",
                               sum.terminated ? "SIGTERM" : "SIGINT", counters.step));
      return sum.terminated ? 128 + SIGTERM : 128 + SIGINT;
    }
  }
  run_agreed(world, [&] {
    if (!first) return;
    save_final_adapter(run_dir, factors);
    if (run.output().trace_collectives()) write_trace(run_dir, world_trace, tensor_trace);
  });
  if (train_data->truncated_count() > 0) {
    console.line(fmt::format("note: this rank cut {} sequence(s) to data.seq_len {}",
                             train_data->truncated_count(), run.data().seq_len()));
  }
  console.line("adapter written to " + (run_dir / "adapter").string());
  return 0;
}

}  // namespace lorashard
