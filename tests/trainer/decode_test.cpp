// Cached decoding and the model's logits against transformers + PEFT, whole and tensor-parallel.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "checkpoint/safetensors.h"
#include "parallel/threads.h"
#include "tests/trainer/golden_run.h"
#include "trainer/model/model.h"
#include "trainer/run/generate.h"
#include "trainer/run/session.h"

namespace lorashard::test {
namespace {

// A loaded reference case, without and with its adapter.
struct Decoder {
  Decoder(const std::string& name, Communicator& world)
      : stream(1),
        base(BaseModel::open((golden("peft/" + name) / "model").string())),
        adapter(read_adapter(golden("peft/" + name) / "adapter", linear_modules(base->config()))),
        mesh(make_mesh(world, world.size())),
        factors(factors_of(stream, base->config(), adapter, mesh)),
        weights(load_weights(stream, *base, mesh.tp_rank, mesh.tp_size, nullptr)),
        model(stream, base->config(), weights, nullptr, nullptr, *mesh.tensor,
              {.max_tokens = 7, .max_positions = 64}) {}

  // Logits after each of the tokens, fed in pieces of `piece`.
  std::vector<float> last_logits(const std::vector<int32_t>& ids, size_t piece) {
    DecodeState state = model.new_sequence(int64_t(ids.size()));
    std::vector<float> logits(size_t(base->config().vocab_size));
    for (size_t i = 0; i < ids.size(); i += piece) {
      model.decode(state, std::span(ids).subspan(i, std::min(piece, ids.size() - i)), logits);
    }
    return logits;
  }

  std::vector<int32_t> greedy(std::vector<int32_t> ids, size_t count) {
    DecodeState state = model.new_sequence(int64_t(ids.size() + count));
    std::vector<float> logits(size_t(base->config().vocab_size));
    std::vector<int32_t> out;
    while (out.size() < count) {
      model.decode(state, ids, logits);
      ids = {pick_token(logits.data(), int64_t(logits.size()), 0, 1, 0, 0)};
      out.push_back(ids[0]);
    }
    return out;
  }

  Stream stream;
  std::unique_ptr<BaseModel> base;
  Adapter adapter;
  Mesh mesh;
  Factors factors;
  ModelWeights weights;
  Model model;
};

class Logits : public testing::TestWithParam<const char*> {};

// merged_logits come from weights that PEFT merged in fp32; ours keep B A apart. Sums in another
// order: a few 1e-6 of logits of size 10.
TEST_P(Logits, EqualThoseOfTransformersAndOfPeftsMergedModel) {
  const std::string name = GetParam();
  const auto file = SafetensorsFile::open(golden("peft/" + name) / "logits.safetensors");
  const TensorInfo& where = *file.find("positions");
  const auto* positions = reinterpret_cast<const int64_t*>(file.data(where));
  const auto line = read_json_lines(golden("peft/" + name) / "data.jsonl").at(0);
  const auto ids = line.at("input_ids").get<std::vector<int32_t>>();
  for (const int ranks : {1, 3}) {
    run_thread_ranks(ranks, [&](Communicator& world) {
      Decoder decoder(name, world);
      for (const bool adapted : {false, true}) {
        decoder.model.use_factors(adapted ? &decoder.factors : nullptr);
        const TensorInfo& t = *file.find(adapted ? "merged_logits" : "base_logits");
        const auto* expected = reinterpret_cast<const float*>(file.data(t));
        for (int64_t p = 0; p < where.elements(); ++p) {
          const std::vector<int32_t> prefix(ids.begin(), ids.begin() + positions[p] + 1);
          for (const size_t piece : {prefix.size(), size_t{1}}) {
            const auto logits = decoder.last_logits(prefix, piece);
            double worst = 0;
            for (size_t v = 0; v < logits.size(); ++v) {
              worst = std::max(
                  worst, std::fabs(double(logits[v]) - expected[size_t(p) * logits.size() + v]));
            }
            EXPECT_LT(worst, 1e-4) << name << " position " << positions[p] << " piece " << piece;
          }
        }
      }
    });
  }
}
INSTANTIATE_TEST_SUITE_P(Cases, Logits,
                         testing::Values("llama2", "llama31", "llama31_new_config",
                                         "llama_tied_bias", "mistral", "qwen2", "qwen3",
                                         "qwen3_moe", "qwen3_moe_dense", "mistral_window",
                                         "qwen3_window", "gemma3", "gemma3_new_config"));

TEST(Generate, GreedyContinuationsEqualThoseOfTransformersWithAdaptersSwapped) {
  for (const char* name : {"llama2", "qwen3", "qwen3_moe", "mistral_window", "gemma3"}) {
    const auto expected = read_json(golden(std::string("peft/") + name) / "expected.json");
    run_thread_ranks(2, [&](Communicator& world) {
      Decoder decoder(name, world);
      for (const auto& g : expected.at("generation")) {
        const auto prompt = g.at("prompt").get<std::vector<int32_t>>();
        for (const char* kind : {"base", "adapter", "base"}) {
          decoder.model.use_factors(kind[0] == 'a' ? &decoder.factors : nullptr);
          const auto ids = g.at(kind).get<std::vector<int32_t>>();
          EXPECT_EQ(decoder.greedy(prompt, ids.size()), ids) << name << " " << kind;
        }
      }
    });
  }
}

TEST(PickToken, SamplesTheSoftmaxWithinTopP) {
  const float logits[4] = {std::log(0.5f), std::log(0.3f), std::log(0.15f), std::log(0.05f)};
  EXPECT_EQ(pick_token(logits, 4, 0, 1, 0, 0), 0);
  const int draws = 20000;
  for (const double top_p : {1.0, 0.75}) {
    std::vector<double> share(4);
    for (int i = 0; i < draws; ++i) {
      share[size_t(pick_token(logits, 4, 1, top_p, 9, i))] += 1.0 / draws;
    }
    // 0.75 keeps 0.5 and 0.3. Standard deviation of a share: at most 0.0036; five of them.
    const double kept = top_p == 1 ? 1 : 0.8;
    EXPECT_NEAR(share[0], 0.5 / kept, 0.018);
    EXPECT_NEAR(share[1], 0.3 / kept, 0.018);
    EXPECT_NEAR(share[3], top_p == 1 ? 0.05 : 0, 0.018);
  }
  EXPECT_EQ(pick_token(logits, 4, 1, 1, 9, 5), pick_token(logits, 4, 1, 1, 9, 5));
}

}  // namespace
}  // namespace lorashard::test
