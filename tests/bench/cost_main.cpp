// The cost model by hand:
//   bench_cost measure --threads 2                    this computer's rates, as JSON
//   bench_cost model --model DIR --rates '{…}' …      one training step, as JSON (cost_growth.py)
//   bench_cost published                              the tables of PREDICTIONS.md
#include <CLI/CLI.hpp>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "checkpoint/adapter.h"
#include "checkpoint/file_io.h"
#include "configs/error.h"
#include "tests/bench/published.h"
#include "trainer/cost/measure_cpu.h"

namespace lorashard::bench {
namespace {

using nlohmann::ordered_json;

ordered_json to_json(const Machine& m) {
  return {{"name", m.name},
          {"backend", m.backend == Backend::CUDA ? "CUDA" : "CPU"},
          {"f32_flops", m.f32_flops},
          {"bf16_flops", m.bf16_flops},
          {"memory_bandwidth", m.memory_bandwidth},
          {"memory_bytes", m.memory_bytes},
          {"reserved_bytes", m.reserved_bytes},
          {"devices_per_node", m.devices_per_node},
          {"inside_bandwidth", m.inside.bandwidth},
          {"inside_latency", m.inside.latency},
          {"between_bandwidth", m.between.bandwidth},
          {"between_latency", m.between.latency},
          {"call_seconds", m.call_seconds},
          {"gemms", m.efficiency.gemms},
          {"attention_forward", m.efficiency.attention_forward},
          {"attention_backward", m.efficiency.attention_backward}};
}

Machine machine_from(const ordered_json& j) {
  Machine m;
  m.name = j.at("name");
  m.backend = j.at("backend") == "CUDA" ? Backend::CUDA : Backend::CPU;
  m.f32_flops = j.at("f32_flops");
  m.bf16_flops = j.at("bf16_flops");
  m.memory_bandwidth = j.at("memory_bandwidth");
  m.memory_bytes = j.at("memory_bytes");
  m.reserved_bytes = j.at("reserved_bytes");
  m.devices_per_node = j.at("devices_per_node");
  m.inside = {j.at("inside_bandwidth"), j.at("inside_latency")};
  m.between = {j.at("between_bandwidth"), j.at("between_latency")};
  m.call_seconds = j.at("call_seconds");
  m.efficiency.gemms = j.at("gemms");
  m.efficiency.attention_forward = j.at("attention_forward");
  m.efficiency.attention_backward = j.at("attention_backward");
  return m;
}

ordered_json to_json(const StepCost& step) {
  ordered_json parts = ordered_json::object(), all_reduces = ordered_json::object();
  for (const KernelCost& k : step.slowest.kernels) {
    parts[k.part + "." + k.kernel] = {
        {"calls", k.calls}, {"flops", k.flops}, {"bytes", k.bytes}, {"seconds", k.seconds}};
  }
  for (const ReductionCost& r : step.slowest.reductions) {
    all_reduces[r.label] = {{"calls", r.calls},
                            {"payload", r.payload},
                            {"wire", r.wire_inside + r.wire_between},
                            {"seconds", r.seconds}};
  }
  const MemoryCost& m = step.largest;
  return {{"seconds", step.seconds},
          {"tokens", step.tokens},
          {"tokens_per_second", step.tokens_per_second()},
          {"model_flops", step.model_flops},
          {"kernel_seconds", step.slowest.kernel_seconds},
          {"exposed_seconds", step.slowest.exposed_seconds},
          {"recomputed_layers", step.slowest.recomputed_layers},
          {"recomputed_mlps", step.slowest.recomputed_mlps},
          {"memory",
           {{"base", m.base},
            {"factors", m.factors},
            {"activations", m.activations},
            {"loss", m.loss},
            {"workspaces", m.workspaces},
            {"reserved", m.reserved},
            {"total", m.total()}}},
          {"kernels", parts},
          {"all_reduces", all_reduces}};
}

struct ModelOptions {
  std::string model, rates, machine, targets = "q_proj,v_proj", dtype = "FP32", recompute = "NONE";
  int64_t lora_rank = 8, seq = 512, micro = 2, global = 2;
  int tensor = 1, data = 1;
};

void print_model(const ModelOptions& o) {
  TrainingJob job;
  const std::string file = o.model + "/config.json";
  job.model = parse_model_config(read_text(file), file);
  job.base_type = job.model.stored_dtype;
  std::vector<std::string> targets;
  for (size_t begin = 0; begin <= o.targets.size();) {
    const size_t end = std::min(o.targets.find(',', begin), o.targets.size());
    targets.push_back(o.targets.substr(begin, end - begin));
    begin = end + 1;
  }
  job.adapter.rank = o.lora_rank;
  job.modules = match_targets(linear_modules(job.model), targets, false, {}, "--targets");
  job.activation_type = o.dtype == "BF16" ? DType::BF16 : DType::F32;
  job.sequence = o.seq, job.micro_batch = o.micro, job.global_batch = o.global;
  job.tensor = o.tensor, job.data = o.data;
  job.recompute = o.recompute == "FULL"   ? Recompute::Full
                  : o.recompute == "MLP"  ? Recompute::Mlp
                  : o.recompute == "AUTO" ? Recompute::Auto
                                          : Recompute::None;
  const Machine* known = find_machine(o.machine);
  if (!known && o.rates.empty()) fail_input("--machine", "unknown; or give --rates");
  const Machine machine = known ? *known : machine_from(ordered_json::parse(o.rates));
  std::printf("%s\n", to_json(step_cost(job, machine)).dump().c_str());
}

// ---- the tables of PREDICTIONS.md

constexpr double kGib = 1 << 30;

double per_device(const StepCost& step, const TrainingJob& job) {
  return step.tokens_per_second() / (job.tensor * job.data);
}

void print_published() {
  std::printf(
      "| published run | tokens/s a GPU | Gflop a token | share of the peak, whole step | share "
      "that GEMMs and attention reach | that share with all the layers' all-reduces hidden |\n"
      "| --- | --- | --- | --- | --- | --- |\n");
  for (const PublishedRun& run : published_runs()) {
    const Machine& h100 = *find_machine("h100-sxm");
    TrainingJob job = run.job;
    job.recompute = Recompute::None;
    const StepCost step = step_cost(job, h100);
    const double per_token = step.model_flops / step.tokens;
    std::printf(
        "| %s | %.0f | %.0f | %.0f %% of %s | %.0f %% | %.0f %% |\n", run.name.c_str(),
        run.tokens_per_second, per_token * 1e-9,
        100 * run.tokens_per_second * per_token / (run.fp8 ? h100.fp8_flops : h100.bf16_flops),
        run.fp8 ? "fp8" : "bf16", 100 * implied_efficiency(run, 0),
        100 * implied_efficiency(run, 1));
  }
}

void print_predictions() {
  std::printf(
      "\n| job | machine | layout | halves in flight | recomputed: layers + gate and up of | s a "
      "step "
      "| tokens/s a GPU | all-reduces' share of the step | GiB a GPU |\n"
      "| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n");
  const auto line = [](const char* name, const Machine& machine, const TrainingJob& job) {
    const StepCost step = step_cost(job, machine);
    std::printf("| %s | %s | TP=%d x DP=%d | %d |", name, machine.name.c_str(), job.tensor,
                job.data, job.overlap ? 2 : 1);
    if (!step.fits) {
      std::printf(" – | does not fit | – | – | %.0f |\n", step.largest.total() / kGib);
      return;
    }
    std::printf(" %ld + %ld of 80 | %.1f | %.0f | %.0f %% | %.0f |\n",
                long(step.slowest.recomputed_layers), long(step.slowest.recomputed_mlps),
                step.seconds, per_device(step, job),
                100 * step.slowest.exposed_seconds / step.seconds, step.largest.total() / kGib);
  };
  for (const auto& [name, base] : {std::pair{"Llama 2 70B, 8192", mlperf_llama2_70b()},
                                   {"Llama 3 70B, 4096", nemo_llama3_70b()}}) {
    for (const Machine& machine : known_machines()) {
      for (const auto& [tensor, data] : {std::pair{2, 4}, {4, 2}, {8, 1}}) {
        TrainingJob job = base;
        job.tensor = tensor, job.data = data;
        line(name, machine, job);
        line(name, machine, in_two_halves(job));
      }
    }
  }
}

// How much hangs on the assumed efficiencies.
void print_range() {
  std::printf(
      "\n| efficiencies | GEMMs | attention forward, backward | memory | links | hidden | "
      "tokens/s a GPU: H100 | H200 | B200 |\n"
      "| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n");
  const std::pair<const char*, Efficiency> cases[] = {
      {"cautious", {0.50, 0.35, 0.30, 0.75, 0.60, 0.5}},
      {"assumed", known_machines()[0].efficiency},
      {"best known of each", {0.78, 0.65, 0.55, 0.92, 0.85, 0.95}}};
  for (const auto& [name, e] : cases) {
    for (const bool halves : {false, true}) {
      std::printf("| %s, %s | %.0f %% | %.0f %%, %.0f %% | %.0f %% | %.0f %% | %.0f %% |", name,
                  halves ? "two halves in flight" : "one sequence at once", 100 * e.gemms,
                  100 * e.attention_forward, 100 * e.attention_backward, 100 * e.memory,
                  100 * e.link, halves ? 100 * e.overlap : 0);
      for (Machine machine : known_machines()) {
        machine.efficiency = e;
        const TrainingJob one = mlperf_llama2_70b(), job = halves ? in_two_halves(one) : one;
        const StepCost step = step_cost(job, machine);
        if (step.fits) {
          std::printf(" %.0f |", per_device(step, job));
        } else {
          std::printf(" does not fit |");
        }
      }
      std::printf("\n");
    }
  }
}

// Where a step goes, by kernel and purpose.
void print_shares() {
  const TrainingJob job = mlperf_llama2_70b();
  const StepCost step = step_cost(job, *find_machine("h100-sxm"));
  std::printf("\n| part of the step | s | share |\n| --- | --- | --- |\n");
  const auto line = [&](const char* name, double seconds) {
    std::printf("| %s | %.2f | %.1f %% |\n", name, seconds, 100 * seconds / step.seconds);
  };
  const auto sum = [&](auto match) {
    double seconds = 0;
    for (const KernelCost& k : step.slowest.kernels) seconds += match(k) ? k.seconds : 0;
    return seconds;
  };
  const auto gemm = [](const KernelCost& k) { return k.kernel.starts_with("matmul"); };
  const auto attention = [](const KernelCost& k) { return k.kernel.starts_with("attention"); };
  for (const char* part : {"forward", "recompute", "backward", "lora", "loss"}) {
    line((std::string("GEMMs, ") + part).c_str(),
         sum([&](const KernelCost& k) { return gemm(k) && k.part == part; }));
  }
  line("attention", sum(attention));
  line("other kernels", sum([&](const KernelCost& k) { return !gemm(k) && !attention(k); }));
  for (const ReductionCost& r : step.slowest.reductions) {
    line(("all-reduce, " + r.label).c_str(), r.exposed_seconds);
  }
}

// What would have to be true for the published rates with bf16 GEMMs.
void print_needs() {
  std::printf("\n| to reach | with | share of the bf16 peak needed |\n| --- | --- | --- |\n");
  for (const PublishedRun& run : published_runs()) {
    if (!run.fp8) continue;
    for (const char* machine : {"h100-sxm", "h200-sxm", "b200"}) {
      for (const bool halves : {false, true}) {
        const TrainingJob job = halves ? in_two_halves(run.job) : run.job;
        std::printf("| %s: %.0f | %s, %s | ", run.name.c_str(), run.tokens_per_second, machine,
                    halves ? "two halves in flight" : "one sequence at once");
        const Machine& m = *find_machine(machine);
        if (!step_cost(job, m).fits) {
          std::printf("does not fit |\n");
          continue;
        }
        const double share = needed_efficiency(job, m, run.tokens_per_second);
        std::printf("%s%.0f %% |\n", share > 1 ? "out of reach: " : "", 100 * share);
      }
    }
  }
}

int run(int argc, char** argv) {
  CLI::App app("The cost model by hand");
  app.require_subcommand(1);
  int threads = 1, host_ranks = 1;
  CLI::App* measure = app.add_subcommand("measure", "this computer's rates, as JSON");
  measure->add_option("--threads", threads, "threads of a rank");
  measure->add_option("--host-ranks", host_ranks, "ranks that share the computer");
  ModelOptions o;
  CLI::App* model = app.add_subcommand("model", "the cost of a training step, as JSON");
  model->add_option("--model", o.model, "directory with config.json")->required();
  model->add_option("--rates", o.rates, "what `measure` printed");
  model->add_option("--machine", o.machine, "h100-sxm, h200-sxm or b200");
  model->add_option("--targets", o.targets);
  model->add_option("--dtype", o.dtype)->check(CLI::IsMember({"FP32", "BF16"}));
  model->add_option("--recompute", o.recompute)
      ->check(CLI::IsMember({"NONE", "MLP", "FULL", "AUTO"}));
  model->add_option("--rank", o.lora_rank);
  model->add_option("--seq", o.seq);
  model->add_option("--micro", o.micro);
  model->add_option("--global", o.global);
  model->add_option("--tp", o.tensor);
  model->add_option("--dp", o.data);
  const CLI::App* published = app.add_subcommand("published", "the tables of PREDICTIONS.md");
  CLI11_PARSE(app, argc, argv);
  if (*measure) {
    Stream stream(threads);
    std::printf("%s\n", to_json(measure_cpu(stream, host_ranks)).dump().c_str());
  }
  if (*model) print_model(o);
  if (*published) {
    print_published();
    print_predictions();
    print_range();
    print_shares();
    print_needs();
  }
  return 0;
}

}  // namespace
}  // namespace lorashard::bench

int main(int argc, char** argv) {
  try {
    return lorashard::bench::run(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "error: %s\n", e.what());
    return 2;
  }
}
