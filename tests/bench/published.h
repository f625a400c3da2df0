// Published LoRA runs on 70-billion-weight models, as jobs of the cost model.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "trainer/cost/cost_model.h"

namespace lorashard::bench {

inline ModelConfig llama_70b(int64_t vocabulary) {
  ModelConfig c;
  c.model_type = "llama";
  c.architecture = "LlamaForCausalLM";
  c.hidden_size = 8192, c.layers = 80, c.heads = 64, c.kv_heads = 8, c.head_dim = 128;
  c.intermediate_size = 28672, c.vocab_size = vocabulary;
  c.layer_window.assign(size_t(c.layers), 0);
  return c;
}

// All layers' modules whose last name is one of `names`.
inline std::vector<LinearModule> adapt(const ModelConfig& model,
                                       const std::vector<std::string>& names) {
  std::vector<LinearModule> adapted;
  for (const LinearModule& m : linear_modules(model)) {
    const std::string last = m.name.substr(m.name.rfind('.') + 1);
    if (std::find(names.begin(), names.end(), last) != names.end()) adapted.push_back(m);
  }
  return adapted;
}

inline TrainingJob bf16_job(const ModelConfig& model, int64_t sequence, int64_t global_batch) {
  TrainingJob job;
  job.model = model;
  job.modules = adapt(model, {"q_proj", "k_proj", "v_proj", "o_proj"});
  job.adapter.rank = 16;
  job.activation_type = DType::BF16;
  job.sequence = sequence;
  job.micro_batch = 1;
  job.global_batch = global_batch;
  job.tensor = 4, job.data = 2;
  return job;
}

// MLPerf Training, Llama 2 70B LoRA: GovReport packed to 8192 tokens, lora_rank 16 on the attention
// projections, 8 sequences a step.
inline TrainingJob mlperf_llama2_70b() { return bf16_job(llama_70b(32000), 8192, 8); }

// Packed to 4096 tokens, 32 sequences a step. Published with TP=2 and four pipeline stages; we have
// no stages, and price TP=4 x DP=2.
inline TrainingJob nemo_llama3_70b() { return bf16_job(llama_70b(128256), 4096, 32); }

struct PublishedRun {
  std::string name;
  TrainingJob job;
  double tokens_per_second;  // of one device
  bool fp8;                  // GEMMs on fp8 units
};

inline std::vector<PublishedRun> published_runs() {
  return {{"MLPerf Llama 2 70B LoRA, fp8, 28 min", mlperf_llama2_70b(), 2200, true},
          // As many tokens in 116 instead of 28 minutes.
          {"MLPerf Llama 2 70B LoRA, unfused PyTorch, bf16, 116 min", mlperf_llama2_70b(),
           2200.0 * 28 / 116, false},
          {"NeMo Llama 3 70B LoRA, fp8", nemo_llama3_70b(), 2643, true}};
}

// The job with two sequences at once, so that two halves are in flight.
inline TrainingJob in_two_halves(TrainingJob job) {
  job.micro_batch = 2;
  job.overlap = true;
  return job;
}

inline Machine with_compute_efficiency(Machine m, double share) {
  m.efficiency.gemms = m.efficiency.attention_forward = m.efficiency.attention_backward = share;
  return m;
}

// The machine with fp8 rates in the place of bf16's.
inline Machine with_fp8(Machine m) {
  m.bf16_flops = m.fp8_flops;
  return m;
}

// The share of the peak, equal for GEMMs and attention, at which the job reaches
// `tokens_per_second` a device on `machine`; above 1: out of reach.
inline double needed_efficiency(const TrainingJob& job, const Machine& machine,
                                double tokens_per_second) {
  double low = 0.001, high = 4;
  for (int i = 0; i < 20; ++i) {
    const double middle = (low + high) / 2;
    const StepCost step = step_cost(job, with_compute_efficiency(machine, middle));
    const double rate = step.tokens_per_second() / (job.tensor * job.data);
    (rate < tokens_per_second ? low : high) = middle;
  }
  return (low + high) / 2;
}

// The share of the peak that a published figure implies on H100s if nothing was recomputed and this
// share of the layers' all-reduces was hidden behind GEMMs.
inline double implied_efficiency(const PublishedRun& run, double overlap) {
  TrainingJob job = in_two_halves(run.job);
  job.recompute = Recompute::None;
  Machine h100 = *find_machine("h100-sxm");
  h100.efficiency.overlap = overlap;
  return needed_efficiency(job, run.fp8 ? with_fp8(h100) : h100, run.tokens_per_second);
}

}  // namespace lorashard::bench
