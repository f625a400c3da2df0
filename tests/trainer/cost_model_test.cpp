// The cost model against runs that really happened, against formulas, and on published hardware.
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "kernels/profile.h"
#include "parallel/threads.h"
#include "tests/bench/published.h"
#include "tests/trainer/golden_run.h"
#include "trainer/cost/cost_model.h"
#include "trainer/cost/measure_cpu.h"
#include "trainer/model/model.h"
#include "trainer/run/optimizer.h"

namespace lorashard::test {
namespace {

// ---- a traced step of the real trainer, and its record

struct Counts {
  std::map<std::string, int64_t> calls;                           // of each kernel
  std::map<std::string, double> flops;                            // of each GEMM
  std::map<std::string, std::pair<int64_t, double>> all_reduces;  // calls, bytes of this rank
};

struct Scene {
  std::string name = {};  // of tests/golden/peft
  int tensor = 1, data = 1;
  DType type = DType::F32;
  float dropout = 0;
  Recompute recompute = Recompute::None;
  size_t budget = 0;
  bool overlap = false;
  std::vector<std::string> targets = {};  // empty: those of the golden adapter
};

// "layer.3.mlp.forward" -> "mlp.forward"
std::string purpose(const std::string& label) {
  if (!label.starts_with("layer.")) return label;
  return label.substr(label.find('.', 6) + 1);
}

// Sequences of these lengths; the first tokens that can be are unmasked, `unmasked` of them.
MicroBatch batch_of(const std::vector<int64_t>& lengths, int64_t unmasked, int64_t vocab) {
  MicroBatch batch;
  batch.offsets = {0};
  int64_t left = unmasked;
  for (const int64_t length : lengths) {
    for (int64_t t = 0; t < length; ++t) {
      batch.ids.push_back(int32_t((t * 37 + length * 11) % vocab));
      const bool is_unmasked = t + 1 < length && left > 0;
      left -= is_unmasked;
      batch.labels.push_back(is_unmasked ? int32_t((t * 53 + 7) % vocab) : -100);
      batch.positions.push_back(int32_t(t));
      batch.row_keys.push_back(uint64_t(length) << 20 | uint64_t(t));
    }
    batch.offsets.push_back(int32_t(batch.ids.size()));
  }
  batch.unmasked = unmasked - left;
  return batch;
}

void add(Counts& counts, const std::vector<KernelCall>& calls) {
  for (const KernelCall& c : calls) {
    ++counts.calls[c.kernel];
    if (c.work.flops > 0 && !c.kernel.starts_with("attention"))
      counts.flops[c.kernel] += c.work.flops;
  }
}

void add(Counts& counts, const std::vector<RecordedReduction>& reductions) {
  for (const RecordedReduction& r : reductions) {
    auto& [calls, bytes] = counts.all_reduces[purpose(r.label)];
    ++calls;
    bytes += r.bytes;
  }
}

// Two micro-batches and the optimizer on one rank, run and recorded.
void compare(const Scene& scene, Communicator& world) {
  Stream stream(1);
  const auto base = BaseModel::open((golden("peft/" + scene.name) / "model").string());
  const std::vector<LinearModule> all = linear_modules(base->config());
  const Adapter adapter = read_adapter(golden("peft/" + scene.name) / "adapter", all);
  const Mesh mesh = make_mesh(world, scene.tensor);
  TrainingJob job;
  job.model = base->config();
  job.modules = scene.targets.empty() ? modules_with_factors(adapter, all)
                                      : match_targets(all, scene.targets, false, {}, "targets");
  job.adapter = adapter.config;
  job.base_type = base->config().stored_dtype;
  job.activation_type = scene.type;
  job.sequence = 24, job.micro_batch = 2;
  job.tensor = scene.tensor, job.data = scene.data;
  job.recompute = scene.recompute;
  job.dropout = scene.dropout;
  job.overlap = scene.overlap;
  Factors factors(
      stream, adapter_layout(base->config(), job.modules, job.adapter, mesh.tp_rank, mesh.tp_size));
  factors.initialize(1, *base);
  TrainingBuffers buffers(stream, factors.size(), world.size());
  ModelWeights weights = load_weights(stream, *base, mesh.tp_rank, mesh.tp_size, &factors);
  Model model(stream, base->config(), weights, &factors, buffers.gradients(), *mesh.tensor,
              {.activation_type = scene.type,
               .max_tokens = job.sequence * job.micro_batch,
               .max_positions = job.sequence,
               .recompute = scene.recompute,
               .memory_budget = scene.budget,
               .overlap = scene.overlap,
               .dropout = scene.dropout});
  RecordedRank recorded(job, Backend::CPU, mesh.tp_rank, scene.budget);

  // Memory, to the byte.
  EXPECT_EQ(recorded.model().recomputed_mlps(), model.recomputed_mlps());
  EXPECT_EQ(recorded.model().recomputed_layers(), model.recomputed_layers());
  EXPECT_EQ(recorded.model().first_layer(), model.first_layer());
  EXPECT_EQ(recorded.model().activation_bytes(), model.activation_bytes());
  EXPECT_GT(recorded.factor_bytes(), 16.0 * double(factors.size()));  // four floats a weight
  EXPECT_LT(recorded.factor_bytes(), 16.0 * double(factors.size()) + 4.0 * (32 + world.size()));
  double stored = 0;
  for (const TensorSpec& t : model_tensors(base->config())) {
    for (const TensorPart& p : tensor_parts(base->config(), t, mesh.tp_rank, mesh.tp_size)) {
      stored += double((p.row_end - p.row_begin) * (p.col_end - p.col_begin) *
                       size_of(base->config().stored_dtype));
    }
  }
  EXPECT_EQ(recorded.base_bytes(), stored);

  // Work, call by call.
  const MicroBatch batches[] = {batch_of({24, 24}, 46, base->config().vocab_size),
                                batch_of({7, 19}, 20, base->config().vocab_size)};
  std::vector<CollectiveCall> world_trace, tensor_trace;
  Profiler profiler;
  world.set_trace(&world_trace);
  mesh.tensor->set_trace(&tensor_trace);
  profiler.attach();
  clear_gradients(stream, buffers);
  model.clear_loss();
  StepMessage mine;
  for (const MicroBatch& batch : batches) {
    model.forward_backward(batch);
    mine.unmasked += batch.unmasked;
  }
  const StepSums sum = reduce_step(stream, buffers, world, mine, model.loss_totals());
  apply_step(stream, factors, buffers, {0.9f, 0.999f, 1e-8f, 0, 1}, 1e-4, 1, sum.unmasked,
             gradient_norm(sum));
  profiler.detach();
  world.set_trace(nullptr);
  mesh.tensor->set_trace(nullptr);
  Counts ran, noted;
  for (const ProfileEvent& e : profiler.events) {
    if (std::string(e.category) != "kernel") continue;
    ++ran.calls[e.name];
    if (e.work > 0) ran.flops[e.name] += e.work;
  }
  for (const auto& [trace, ranks] :
       {std::pair{&world_trace, world.size()}, std::pair{&tensor_trace, mesh.tensor->size()}}) {
    for (const CollectiveCall& c : *trace) {
      EXPECT_EQ(c.operation, "all_reduce") << c.label;
      if (ranks == 1) continue;  // nothing is sent, nor recorded
      auto& [calls, bytes] = ran.all_reduces[purpose(c.label)];
      ++calls;
      bytes += double(c.bytes);
    }
  }

  for (const MicroBatch& batch : batches) recorded.micro_batch(batch);
  recorded.optimizer_step();
  add(noted, recorded.take_kernels());
  add(noted, recorded.tensor_reductions());
  add(noted, recorded.world_reductions());
  const size_t gemms = scene.dropout > 0 ? 6 : 3;
  EXPECT_EQ(ran.flops.size(), gemms) << "matmul_nt, _nn, _tn; lora_dropout_forward, _wgrad, _dgrad";
  EXPECT_EQ(noted.calls, ran.calls);
  EXPECT_EQ(noted.flops, ran.flops);
  EXPECT_EQ(noted.all_reduces, ran.all_reduces);
}

class AgainstARun : public testing::TestWithParam<Scene> {};

TEST_P(AgainstARun, CallsFlopsBytesAndMemoryAreTheSame) {
  run_thread_ranks(GetParam().tensor * GetParam().data,
                   [](Communicator& world) { compare(GetParam(), world); });
}

// Flops are sums of integers far below 2^53, so equality is exact.
INSTANTIATE_TEST_SUITE_P(
    Scenes, AgainstARun,
    testing::Values(
        Scene{.name = "llama2"}, Scene{.name = "llama2", .tensor = 2, .data = 2},
        Scene{.name = "llama2", .tensor = 3, .recompute = Recompute::Full},
        Scene{.name = "llama2", .type = DType::BF16, .dropout = 0.2f},
        Scene{
            .name = "llama_tied_bias", .tensor = 2, .dropout = 0.1f, .recompute = Recompute::Full},
        Scene{.name = "llama_tied_bias", .recompute = Recompute::Auto, .budget = 250000},
        Scene{.name = "llama_tied_bias", .recompute = Recompute::Auto, .budget = 150000},
        Scene{.name = "gpt2", .tensor = 2, .dropout = 0.1f, .recompute = Recompute::Mlp},
        Scene{.name = "qwen3", .tensor = 2, .recompute = Recompute::Mlp},
        Scene{.name = "qwen3", .tensor = 2, .recompute = Recompute::Full},
        Scene{.name = "qwen3", .data = 2, .type = DType::BF16}, Scene{.name = "qwen2", .tensor = 4},
        Scene{.name = "gemma3", .tensor = 2, .recompute = Recompute::Mlp},
        Scene{.name = "mistral", .tensor = 2},
        Scene{.name = "llama2",
              .tensor = 2,
              .dropout = 0.1f,
              .recompute = Recompute::Mlp,
              .overlap = true},
        Scene{.name = "llama2", .overlap = true},
        // Lowest adapted layer above the bottom, and no gradient into frozen inputs.
        Scene{.name = "llama_tied_bias",
              .tensor = 2,
              .recompute = Recompute::Full,
              .targets = {"layers.1.mlp.down_proj", "layers.2.self_attn.q_proj"}},
        Scene{.name = "llama_tied_bias", .targets = {"layers.1.self_attn.o_proj"}},
        Scene{.name = "llama_tied_bias", .targets = {"layers.2.mlp.gate_proj"}}),
    [](const auto& info) { return info.param.name + "_" + std::to_string(info.index); });

// ---- formulas

// The model that MLPerf trains, without its data sheet figures mattering: sizes only.
TrainingJob llama70b() {
  TrainingJob job = bench::mlperf_llama2_70b();
  job.recompute = Recompute::None;
  return job;
}

double flops_of(const RankCost& cost, const std::string& part, bool attention) {
  double sum = 0;
  for (const KernelCost& k : cost.kernels) {
    if (k.part == part && k.kernel.starts_with("attention") == attention) sum += k.flops;
  }
  return sum;
}

TEST(AttentionPairs, AreCountedOneByOne) {
  for (const int64_t n : {1, 2, 7, 64}) {
    for (const int64_t cached : {0, 1, 5}) {
      for (const int64_t window : {0, 1, 3, 7, 100}) {
        double pairs = 0;
        for (int64_t q = 0; q < n; ++q) {
          for (int64_t k = 0; k <= cached + q; ++k) pairs += window == 0 || cached + q - k < window;
        }
        EXPECT_EQ(attention_pairs(n, cached + n, window), pairs) << n << " " << window;
      }
    }
  }
}

// 2 flops per weight and token forward, 2 backward; none backward for the lowest layer's q, k, v
// (nothing below needs it), none for the embedding.
TEST(Flops, AreFourPerFrozenWeightAndToken) {
  TrainingJob job = llama70b();
  job.tensor = 1, job.data = 1, job.unmasked_share = 1;
  const RankCost cost = rank_cost(job, *find_machine("h200-sxm"), 0);
  const ModelConfig& c = job.model;
  double weights = 0, lowest_qkv = 0;
  for (const LinearModule& m : linear_modules(c)) {
    const double n = double(m.out_features) * double(m.in_features);
    weights += n;
    if (m.layer == 0 && (m.split == Split::QueryRows || m.split == Split::KvRows)) lowest_qkv += n;
  }
  const double tokens = double(job.global_batch * job.sequence);
  EXPECT_EQ(flops_of(cost, "forward", false), 2 * tokens * weights);
  EXPECT_EQ(flops_of(cost, "backward", false), 2 * tokens * (weights - lowest_qkv));
  const double unmasked = double(job.global_batch * (job.sequence - 1));
  EXPECT_EQ(flops_of(cost, "loss", false),
            4 * unmasked * double(c.vocab_size) * double(c.hidden_size));
  // Half of T^2, up to the diagonal.
  const double square = tokens * double(job.sequence) * double(c.heads * c.head_dim * c.layers);
  EXPECT_NEAR(flops_of(cost, "forward", true), 4 * square / 2, 2e-4 * square * 2);
  EXPECT_NEAR(flops_of(cost, "backward", true), 10 * square / 2, 2e-4 * square * 5);
}

TEST(Scaling, IsLinearInTokensButForAttention) {
  TrainingJob job = llama70b();
  const Machine& h100 = *find_machine("h100-sxm");
  const RankCost one = rank_cost(job, h100, 0);
  job.sequence *= 2;
  const RankCost two = rank_cost(job, h100, 0);
  EXPECT_EQ(flops_of(two, "forward", false), 2 * flops_of(one, "forward", false));
  EXPECT_EQ(flops_of(two, "lora", false), 2 * flops_of(one, "lora", false));
  EXPECT_NEAR(flops_of(two, "forward", true) / flops_of(one, "forward", true), 4, 1e-3);
  EXPECT_NEAR(two.memory.activations / one.memory.activations, 2, 1e-6);
  EXPECT_EQ(two.memory.loss, 0) << "it fits the layers' scratch";
  EXPECT_EQ(two.memory.base, one.memory.base);
  EXPECT_EQ(two.memory.factors, one.memory.factors);
  for (size_t i = 0; i < one.reductions.size(); ++i) {
    const std::string& label = one.reductions[i].label;
    const double ratio = two.reductions[i].payload / one.reductions[i].payload;
    EXPECT_NEAR(ratio, label == "lora_gradient" ? 1 : 2, 1e-3) << label;
  }
}

TEST(Scaling, OfRankIsLinearAndTouchesOnlyTheFactors) {
  TrainingJob job = llama70b();
  const Machine& h100 = *find_machine("h100-sxm");
  const RankCost one = rank_cost(job, h100, 0);
  job.adapter.rank *= 4;
  const RankCost four = rank_cost(job, h100, 0);
  EXPECT_EQ(flops_of(four, "lora", false), 4 * flops_of(one, "lora", false));
  EXPECT_EQ(flops_of(four, "forward", false), flops_of(one, "forward", false));
  const double message = 4.0 * double(StepMessage::floats(job.tensor * job.data));
  // But for the message's padding to whole doubles.
  EXPECT_NEAR(four.memory.factors - message, 4 * (one.memory.factors - message), 64);
  const auto gradient = [](const RankCost& c) { return c.reductions.back(); };
  EXPECT_EQ(gradient(one).label, "lora_gradient");
  EXPECT_EQ(gradient(one).calls, 1);
  EXPECT_EQ(gradient(four).calls, 1);
  EXPECT_EQ(gradient(four).payload - message, 4 * (gradient(one).payload - message));
}

TEST(Scaling, OfTensorRanksDividesWorkAndBase) {
  TrainingJob job = llama70b();
  const Machine& h200 = *find_machine("h200-sxm");
  job.tensor = 1, job.data = 1;
  const RankCost one = rank_cost(job, h200, 0);
  for (const int ranks : {2, 4, 8}) {
    job.tensor = ranks;
    const RankCost part = rank_cost(job, h200, ranks - 1);
    for (const bool attention : {false, true}) {
      EXPECT_EQ(flops_of(part, "forward", attention) * ranks, flops_of(one, "forward", attention));
      EXPECT_EQ(flops_of(part, "backward", attention) * ranks,
                flops_of(one, "backward", attention));
    }
    EXPECT_NEAR(part.memory.base * ranks / one.memory.base, 1, 1e-3);  // norms are whole
    EXPECT_GT(part.exposed_seconds, 0);
    EXPECT_EQ(one.exposed_seconds, 0);
    // Two all-reduces forward and two backward for each layer and micro-batch, but for the lowest
    // layer's last; every one of tokens x hidden in bf16.
    const int64_t layers = job.model.layers, micro = job.global_batch;
    const double payload = double(job.sequence * job.model.hidden_size * 2);
    for (const ReductionCost& r : part.reductions) {
      if (!r.label.ends_with(".forward") && !r.label.ends_with(".backward")) continue;
      const int64_t calls = micro * (layers - (r.label == "attention.backward"));
      EXPECT_EQ(r.calls, calls) << r.label;
      EXPECT_EQ(r.payload, double(calls) * payload) << r.label;
      EXPECT_NEAR(r.wire_inside, r.payload * 2 * (ranks - 1) / ranks, 1e-6 * r.payload) << r.label;
      EXPECT_EQ(r.wire_between, 0);
    }
  }
}

TEST(Scaling, RecomputationCostsLessThanAForwardPassAndSavesMemory) {
  TrainingJob job = llama70b();
  const Machine& h100 = *find_machine("h100-sxm");
  const RankCost kept = rank_cost(job, h100, 0);
  job.recompute = Recompute::Full;
  const RankCost full = rank_cost(job, h100, 0);
  EXPECT_EQ(flops_of(kept, "recompute", false), 0);
  // o and down are not run again.
  const double again = flops_of(full, "recompute", false) / flops_of(full, "forward", false);
  EXPECT_GT(again, 0.5);
  EXPECT_LT(again, 0.75);
  EXPECT_EQ(flops_of(full, "recompute", true), flops_of(full, "forward", true));
  EXPECT_LT(full.memory.activations, 0.6 * kept.memory.activations);
  EXPECT_GT(full.seconds(), kept.seconds());
}

// A micro-batch of one sequence cannot be cut; of two it can, for more and smaller calls.
TEST(Overlap, HidesTheLayersSumsAlone) {
  TrainingJob job = llama70b();
  job.overlap = true;
  Machine m = *find_machine("h200-sxm");
  m.efficiency.overlap = 1;
  const RankCost single = rank_cost(job, m, 0);
  for (const ReductionCost& r : single.reductions) EXPECT_EQ(r.exposed_seconds, r.seconds);
  job.micro_batch = 2;
  const RankCost pair = rank_cost(job, m, 0);
  for (const ReductionCost& r : pair.reductions) {
    const bool of_layer = r.label.starts_with("attention.") || r.label.starts_with("mlp.");
    EXPECT_EQ(r.exposed_seconds, of_layer ? 0 : r.seconds) << r.label;
  }
  EXPECT_LT(pair.seconds(), single.seconds());
  EXPECT_EQ(flops_of(pair, "forward", true), flops_of(single, "forward", true));
}

TEST(AllReduceCost, IsTheRingsAndCrossesNodesInPieces) {
  Machine m = *find_machine("h100-sxm");
  m.efficiency.link = 1;
  m.inside = {100, 1};
  m.between = {10, 2};
  EXPECT_EQ(all_reduce_cost(m, 1, 800).seconds, 0);
  const AllReduceCost inside = all_reduce_cost(m, 4, 800);
  EXPECT_DOUBLE_EQ(inside.wire_inside, 2 * 0.75 * 800);
  EXPECT_DOUBLE_EQ(inside.seconds, 2 * 3 * 1 + 1200 / 100.0);
  const AllReduceCost across = all_reduce_cost(m, 32, 800);
  EXPECT_DOUBLE_EQ(across.wire_inside, 2 * 7 / 8.0 * 800);
  EXPECT_DOUBLE_EQ(across.wire_between, 2 * 3 / 4.0 * 100);
  EXPECT_DOUBLE_EQ(across.seconds, 2 * 7 * 1 + 1400 / 100.0 + 2 * 3 * 2 + 150 / 10.0);
}

TEST(Time, IsTheLongerOfArithmeticAndTraffic) {
  Machine m;
  m.f32_flops = 1000, m.bf16_flops = 4000, m.memory_bandwidth = 100;
  KernelCall gemm{"matmul_nt", "layer.0.mlp.forward", {1200, 2000, DType::F32}};
  EXPECT_DOUBLE_EQ(kernel_seconds(gemm, m), 12);  // 2000 flops in 2 s, 1200 bytes in 12 s
  gemm.work.type = DType::BF16;
  m.memory_bandwidth = 1e9;
  EXPECT_DOUBLE_EQ(kernel_seconds(gemm, m), 0.5);
  m.call_seconds = 3;
  std::vector<KernelCost> costs;
  const std::vector<KernelCall> calls = {gemm, {"add", "loss", {100}}, gemm};
  add_kernels(costs, calls, m, 2);
  ASSERT_EQ(costs.size(), 2u);
  EXPECT_EQ(costs[0].part, "forward");
  EXPECT_EQ(costs[0].calls, 4);
  EXPECT_DOUBLE_EQ(costs[0].seconds, 12);
  EXPECT_EQ(costs[1].part, "loss");
  EXPECT_DOUBLE_EQ(costs[1].seconds, 6);
}

// On CUDA a GEMM takes operands of one type: what it converts first is seen, and its memory.
TEST(Recorded, CudaConvertsFactorsAndTheirInputs) {
  TrainingJob job = llama70b();
  job.modules = match_targets(linear_modules(job.model), {"all-linear"}, false, {}, "targets");
  const auto conversions = [&](Backend backend) {
    RecordedRank rank(job, backend, 0, 0);
    rank.micro_batch(rank.full_micro_batch());
    int64_t calls = 0;
    for (const KernelCall& c : rank.take_kernels()) calls += c.kernel == "convert";
    return std::pair{calls, rank.scratch_bytes()};
  };
  EXPECT_EQ(conversions(Backend::CPU), (std::pair<int64_t, double>{0, 0}));
  const auto [calls, bytes] = conversions(Backend::CUDA);
  // A layer has 7 modules of 4 inputs. Forward: A, u and B; backward: u, B, t and A. The logits'
  // gradient, of the loss, is converted once a chunk.
  EXPECT_GT(calls, job.model.layers * 30);
  EXPECT_GT(bytes, 0);
}

TEST(Step, PicksTheSlowestRankAndSaysWhatDoesNotFit) {
  TrainingJob job = llama70b();
  const Machine& h100 = *find_machine("h100-sxm");
  EXPECT_FALSE(step_cost(job, h100).fits) << "35 GB of base and all activations of 8192 tokens";
  job.recompute = Recompute::Auto;
  const StepCost step = step_cost(job, h100);
  EXPECT_TRUE(step.fits);
  EXPECT_GT(step.slowest.recomputed_mlps, 0);
  EXPECT_EQ(step.slowest.recomputed_layers, 0);
  EXPECT_EQ(step.seconds, step.slowest.seconds());
  // What AUTO keeps leaves room for kernels' scratch.
  TrainingJob halves = bench::in_two_halves(bench::nemo_llama3_70b());
  EXPECT_TRUE(step_cost(halves, h100).fits);
  job.tensor = 1;
  job.data = 8;
  EXPECT_FALSE(step_cost(job, h100).fits) << "138 GB of base on one device";
  // Uneven parts: three ranks share 64 heads as 21, 21, 22.
  job.tensor = 3, job.data = 1;
  const StepCost uneven = step_cost(job, h100);
  for (int r = 0; r < 3; ++r) EXPECT_LE(rank_cost(job, h100, r).seconds(), uneven.seconds);
}

// ---- published runs (tests/bench/PREDICTIONS.md)

TEST(Published, ThroughputsLieBelowTheRoofAndAboveADecentShareOfIt) {
  for (const bench::PublishedRun& run : bench::published_runs()) {
    const double share = bench::implied_efficiency(run, 0);
    EXPECT_GT(share, 0.05) << run.name;
    EXPECT_LT(share, 1) << run.name << ": faster than the machine's peak, so flops are miscounted";
  }
}

TEST(Published, FlopsPerTokenAreWhatTheyReport) {
  // NeMo's table gives 722 TFLOP/s a device at 2,621 tokens/s for Llama 2 70B LoRA at 4096 tokens.
  TrainingJob job = llama70b();
  job.sequence = 4096;
  const StepCost step = step_cost(job, *find_machine("h200-sxm"));
  EXPECT_NEAR(step.model_flops / step.tokens, 722e12 / 2621, 0.10 * 722e12 / 2621);
}

TEST(MeasuredCpu, HasRatesThatAreRates) {
  Stream stream(1);
  const Machine m = measure_cpu(stream, 1);
  EXPECT_GT(m.f32_flops, 1e8);
  EXPECT_LT(m.f32_flops, 1e13);
  EXPECT_GT(m.bf16_flops, 1e8);
  EXPECT_GT(m.memory_bandwidth, 1e8);
  EXPECT_LT(m.memory_bandwidth, 1e12);
  EXPECT_GT(m.memory_bytes, 1e8);
}

}  // namespace
}  // namespace lorashard::test
