// What a training step asks of a CUDA device: on the simulator, which counts, no allocation and one
// wait; on any device a micro-batch that runs as a CUDA graph.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include "configs/config.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/device.h"
#include "kernels/stream.h"
#include "kernels/transfer.h"
#include "parallel/threads.h"
#include "tests/support/temp_dir.h"
#include "tests/trainer/golden_run.h"
#include "trainer/model/model.h"
#include "trainer/run/optimizer.h"
#include "trainer/run/session.h"
#include "trainer/run/train.h"
#if LORASHARD_CUDA_SIM
#include <cudasim/counts.h>
#endif

namespace lorashard::test {
namespace {

#if LORASHARD_CUDA_SIM

struct Sample {
  int64_t allocations = cudasim::counts().allocations, releases = cudasim::counts().releases,
          waits = cudasim::counts().waits, pageable_copies = cudasim::counts().pageable_copies;
};

struct Way {
  std::string name;
  int tensor;
  std::vector<std::string> settings;
};
void PrintTo(const Way& way, std::ostream* out) { *out << way.name; }

class CudaStep : public testing::TestWithParam<Way> {};

// Sequences of many lengths, two micro-batches a step. The run asks for a signal once a step,
// between its gradients and their all-reduce: from one such moment to the next is a step.
TEST_P(CudaStep, TakesNoMemoryAndWaitsOnce) {
  const Way& way = GetParam();
  const TempDir out;
  const fs::path dir = golden("peft/llama2");
  std::vector<std::string> settings{"model.path=" + (dir / "model").string(),
                                    "data.train=" + (dir / "data.jsonl").string(),
                                    "data.eval=" + (dir / "eval.jsonl").string(),
                                    "lora.init_from=" + (dir / "adapter").string(),
                                    "output.dir=" + (out / "run").string(),
                                    "compute.backend=CUDA",
                                    "parallel.tensor=" + std::to_string(way.tensor)};
  settings.insert(settings.end(), way.settings.begin(), way.settings.end());
  std::vector<Sample> samples;
  run_thread_ranks(way.tensor, [&](Communicator& world) {
    const Config config = load_config((dir / "config.textproto").string(), settings);
    TrainOptions options;
    options.stop_signal = [&] {
      if (world.rank() == 0) samples.emplace_back();
      return 0;
    };
    train(config, Ranks{world, way.tensor, world.rank()}, options);
  });
  ASSERT_EQ(samples.size(), 8u);
  for (size_t i = 1; i < samples.size(); ++i) {
    EXPECT_EQ(samples[i].allocations, samples[i - 1].allocations) << "step " << i + 1;
    EXPECT_EQ(samples[i].releases, samples[i - 1].releases) << "step " << i + 1;
    EXPECT_EQ(samples[i].pageable_copies, samples[i - 1].pageable_copies) << "step " << i + 1;
    // Ranks that watch their all-reduces ask again and again in their one wait.
    if (way.tensor == 1) {
      EXPECT_LE(samples[i].waits - samples[i - 1].waits, 1) << "step " << i + 1;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Ways, CudaStep,
    testing::Values(Way{"fp32", 1, {}}, Way{"bf16", 1, {"compute.dtype=BF16"}},
                    Way{"dropout", 1, {"compute.dtype=BF16", "lora.dropout=0.2"}},
                    Way{"recomputed", 1, {"compute.recompute=FULL"}},
                    Way{"tensor", 2, {"compute.dtype=BF16"}}),
    [](const testing::TestParamInfo<Way>& info) { return info.param.name; });

#endif

// Two sequences whose ids and labels depend on `salt`, and whose shape does not.
MicroBatch two_sequences(int64_t vocab, int32_t salt) {
  MicroBatch batch;
  batch.offsets = {0};
  for (const int32_t length : {9, 14}) {
    for (int32_t t = 0; t < length; ++t) {
      batch.ids.push_back(int32_t((t * 37 + length * 11 + salt * 5) % vocab));
      const bool unmasked = t + 1 < length && t % 4 != 3;
      batch.labels.push_back(unmasked ? int32_t((t * 53 + 7 + salt) % vocab) : -100);
      batch.unmasked += unmasked;
      batch.positions.push_back(t);
      batch.row_keys.push_back(uint64_t(length + salt) << 20 | uint64_t(t));
    }
    batch.offsets.push_back(int32_t(batch.ids.size()));
  }
  return batch;
}

class Graph {
 public:
  // Captures what `work` enqueues on the stream.
  Graph(Stream& stream, const std::function<void()>& work) : stream_(cuda::stream_of(stream)) {
    LORASHARD_CUDA_CHECK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal));
    work();
    cudaGraph_t graph = nullptr;
    LORASHARD_CUDA_CHECK(cudaStreamEndCapture(stream_, &graph));
    LORASHARD_CUDA_CHECK(cudaGraphInstantiate(&graph_, graph, 0));
    LORASHARD_CUDA_CHECK(cudaGraphDestroy(graph));
  }
  ~Graph() { cudaGraphExecDestroy(graph_); }
  void launch() { LORASHARD_CUDA_CHECK(cudaGraphLaunch(graph_, stream_)); }

 private:
  cudaStream_t stream_;
  cudaGraphExec_t graph_ = nullptr;
};

class CudaGraph : public testing::TestWithParam<std::tuple<DType, float>> {};

// The graph of one micro-batch, launched twice, then for another micro-batch of its shape: bit for
// bit the gradients and losses of plain execution.
TEST_P(CudaGraph, OfAMicroBatchGivesThePlainGradients) {
  if (cuda_devices() == 0) GTEST_SKIP() << "no CUDA device answers here";
  const auto [type, dropout] = GetParam();
  Stream stream(Backend::CUDA, 1);
  const auto world = make_self_communicator();
  const auto base = BaseModel::open((golden("peft/llama2") / "model").string());
  const Adapter adapter =
      read_adapter(golden("peft/llama2") / "adapter", linear_modules(base->config()));
  const Mesh mesh = make_mesh(*world, 1);
  Factors factors = factors_of(stream, base->config(), adapter, mesh);
  TrainingBuffers buffers(stream, factors.size(), 1);
  ModelWeights weights = load_weights(stream, *base, 0, 1, &factors);
  Model model(stream, base->config(), weights, &factors, buffers.gradients(), *mesh.tensor,
              {.activation_type = type, .max_tokens = 64, .max_positions = 32, .dropout = dropout});
#if LORASHARD_CUDA_SIM
  const int64_t allocations = cudasim::counts().allocations;
#endif
  const auto clear = [&] {
    clear_gradients(stream, buffers);
    model.clear_loss();
  };
  const auto result = [&] {
    std::vector<float> all = factors.read(buffers.gradients());
    all.push_back(float(host_copy(stream, model.loss_totals(), 1)[0].loss));
    return all;
  };
  const int64_t vocab = base->config().vocab_size;
  const MicroBatch first = two_sequences(vocab, 0), second = two_sequences(vocab, 3);
  clear();
  model.forward_backward(first);
  const std::vector<float> once = result();
  model.forward_backward(first);
  const std::vector<float> twice = result();
  clear();
  model.forward_backward(second);
  const std::vector<float> other = result();
  EXPECT_NE(once, twice);
  EXPECT_NE(once, other);

  model.stage(first);
  clear();
  Graph graph(stream, [&] { model.forward_backward_staged(); });
  EXPECT_EQ(result(), std::vector<float>(once.size(), 0.0f));  // captured only
  graph.launch();
  EXPECT_EQ(result(), once);
  graph.launch();
  EXPECT_EQ(result(), twice);
  clear();
  model.stage(second);
  graph.launch();
  EXPECT_EQ(result(), other);
#if LORASHARD_CUDA_SIM
  EXPECT_EQ(cudasim::counts().allocations, allocations);
#endif
}

INSTANTIATE_TEST_SUITE_P(Types, CudaGraph,
                         testing::Combine(testing::Values(DType::F32, DType::BF16),
                                          testing::Values(0.0f, 0.2f)),
                         [](const auto& info) {
                           return std::string(name_of(std::get<0>(info.param))) +
                                  (std::get<1>(info.param) > 0 ? "WithDropout" : "");
                         });

}  // namespace
}  // namespace lorashard::test
