// Gradients of the whole model against differences of its loss, and the step's all-reduce.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "configs/error.h"
#include "parallel/threads.h"
#include "tests/trainer/golden_run.h"
#include "trainer/model/model.h"
#include "trainer/run/optimizer.h"
#include "trainer/run/session.h"

namespace lorashard::test {
namespace {

MicroBatch two_sequences(int64_t vocab) {
  MicroBatch batch;
  batch.offsets = {0};
  for (const int32_t length : {9, 14}) {
    for (int32_t t = 0; t < length; ++t) {
      batch.ids.push_back(int32_t((t * 37 + length * 11) % vocab));
      const bool unmasked = t + 1 < length && t % 4 != 3;
      batch.labels.push_back(unmasked ? int32_t((t * 53 + 7) % vocab) : -100);
      batch.unmasked += unmasked;
      batch.positions.push_back(t);
      batch.row_keys.push_back(uint64_t(length) << 20 | uint64_t(t));
    }
    batch.offsets.push_back(int32_t(batch.ids.size()));
  }
  return batch;
}

// Adds the gradients; returns the loss of this batch alone.
double loss_of(Stream& stream, Model& model, const MicroBatch& batch) {
  model.clear_loss();
  model.forward_backward(batch);
  return host_copy(stream, model.loss_totals(), 1)[0].loss;
}

struct GradientCase {
  const char *adapter, *model;  // in tests/golden/peft
};
class Gradient : public testing::TestWithParam<GradientCase> {};

// A step of h in one factor changes the summed loss by g h + O(h^3) between +h and -h. The loss is
// formed in double from fp32 logits of size 5: noise of about 1e-5 over 2 h = 0.02, and the cubic
// term is of that size too; 1e-2 of the largest gradient covers both, and a wrong term does not.
// DoRA's norms are constants to the gradient: they are formed once, and again (the same ones) where
// a magnitude has changed.
TEST_P(Gradient, EqualsDifferencesOfTheLoss) {
  const auto [name, model_name] = GetParam();
  const fs::path dir = golden("peft") / name, model_dir = golden("peft") / model_name;
  run_thread_ranks(2, [&](Communicator& world) {
    Stream stream(1);
    const auto base = BaseModel::open((model_dir / "model").string());
    const Adapter adapter = read_adapter(dir / "adapter", base->config());
    const Mesh mesh = make_mesh(world, world.size());
    Factors factors = factors_of(stream, base->config(), adapter, mesh);
    TrainingBuffers buffers(stream, factors.size(), world.size());
    ModelWeights weights = load_weights(stream, *base, mesh.tp_rank, mesh.tp_size, &factors);
    Model model(stream, base->config(), weights, &factors, buffers.gradients(), *mesh.tensor,
                {.max_tokens = 32, .max_positions = 32, .dropout = 0.2f});
    model.factors_changed();
    const MicroBatch batch = two_sequences(base->config().vocab_size);
    std::fill_n(buffers.gradients(), buffers.size(), 0.0f);
    const double loss = loss_of(stream, model, batch);
    EXPECT_TRUE(std::isfinite(loss));
    reduce_step(stream, buffers, world, {});
    const std::vector<float> gradient(buffers.gradients(), buffers.gradients() + buffers.size());
    double largest = 0;
    for (const float g : gradient) largest = std::max(largest, std::fabs(double(g)));
    // Every tensor of every module once.
    int64_t probe = 0;
    for (const AdapterTensor& t : factors.layout().tensors) {
      probe = (probe * 31 + 17) % t.size();
      float& value = factors.values()[t.offset + probe];
      const float before = value, h = 1e-2f;
      const auto loss_at = [&](float changed) {
        value = changed;
        if (t.kind == AdapterTensorKind::Magnitude) model.factors_changed();
        return loss_of(stream, model, batch);
      };
      const double up = loss_at(before + h), down = loss_at(before - h);
      value = before;
      if (t.kind == AdapterTensorKind::Magnitude) model.factors_changed();
      EXPECT_NEAR((up - down) / (2 * double(h)), gradient[size_t(t.offset + probe)], 1e-2 * largest)
          << factors.layout().owner(t);
    }
  });
}
INSTANTIATE_TEST_SUITE_P(Cases, Gradient,
                         testing::Values(GradientCase{"llama_tied_bias", "llama_tied_bias"},
                                         GradientCase{"qwen3", "qwen3"},
                                         GradientCase{"gemma3_new_config", "gemma3_new_config"},
                                         GradientCase{"methods/bias_all", "llama_tied_bias"},
                                         GradientCase{"methods/dora_loraplus_bias", "qwen2"}));

// The message behind the gradients carries counts beyond what one fp32 holds.
TEST(ReduceStep, CountsStayExact) {
  run_thread_ranks(3, [&](Communicator& world) {
    Stream stream(1);
    TrainingBuffers buffers(stream, 5, 3);
    const LossTotals loss{.loss = 1e7 + 0.125 * world.rank(), .pairs = {}};
    const StepMessage mine{.unmasked = 16'777'217 + world.rank(),
                           .tokens = 999'999'999,
                           .interrupted = false,
                           .terminated = world.rank() == 2,
                           .rss_mib = 100.0 + world.rank()};
    const StepSums sum = reduce_step(stream, buffers, world, mine, &loss);
    EXPECT_NEAR(sum.totals.loss, 3e7 + 0.375, 4) << "fp32 sums of the high parts";
    EXPECT_EQ(sum.unmasked, 3 * 16'777'217 + 3);
    EXPECT_EQ(sum.tokens, 2'999'999'997);
    EXPECT_FALSE(sum.interrupted);
    EXPECT_TRUE(sum.terminated);
    EXPECT_EQ(sum.rss_mib, 102);
  });
}

TEST(Replicas, ADifferenceStopsEveryRankAndNamesModuleAndRanks) {
  run_thread_ranks(4, [&](Communicator& world) {
    Stream stream(1);
    const auto base = BaseModel::open((golden("peft/llama2") / "model").string());
    const Adapter adapter =
        read_adapter(golden("peft/llama2") / "adapter", linear_modules(base->config()));
    const Mesh mesh = make_mesh(world, 2);
    Factors factors = factors_of(stream, base->config(), adapter, mesh);
    TrainingBuffers buffers(stream, factors.size(), world.size());
    check_replicas(factors, buffers, world);
    const LoraModule& m = factors.modules()[3];
    if (world.rank() == 2) buffers.second_moments()[m.b.offset] = 1e-30f;
    try {
      check_replicas(factors, buffers, world);
      ADD_FAILURE() << "no error";
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(m.linear.name), std::string::npos) << e.what();
      EXPECT_NE(std::string(e.what()).find("rank(s) 2,"), std::string::npos) << e.what();
      EXPECT_TRUE(e.on_all_ranks);
    }
  });
}

}  // namespace
}  // namespace lorashard::test
