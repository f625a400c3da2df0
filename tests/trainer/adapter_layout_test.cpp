// The list of an adapter's tensors, and what each use of an adapter allocates.
#include "trainer/model/adapter_layout.h"

#include <gtest/gtest.h>

#include <fstream>
#include <numeric>

#include "checkpoint/base_model.h"
#include "tests/trainer/golden_run.h"
#include "trainer/model/factors.h"
#include "trainer/run/training_buffers.h"

namespace lorashard::test {
namespace {

AdapterLayout layout_of(int64_t lora_rank, int tp_rank, int tp_size) {
  const auto base = BaseModel::open((golden("peft/qwen3") / "model").string());
  AdapterConfig config;
  config.rank = lora_rank;
  return adapter_layout(base->config(), linear_modules(base->config()), config, tp_rank, tp_size);
}

TEST(AdapterLayout, TensorsFillAFlatBufferAndAsOfOneInputAreNeighbours) {
  const AdapterLayout layout = layout_of(3, 0, 1);
  ASSERT_EQ(layout.tensors.size(), 2 * layout.modules.size());
  int64_t end = 0;
  for (const AdapterTensor& t : layout.tensors) {
    EXPECT_EQ(t.offset, end);
    end += t.rows * t.cols;
    EXPECT_EQ(t.local_rows, (std::vector{Range{0, t.rows}}));
    EXPECT_EQ(t.local_cols, (std::vector{Range{0, t.cols}}));
  }
  EXPECT_EQ(layout.size, end);
  // A of q k v o gate up down of layer 0, ..., then B.
  for (size_t i = 0; i < layout.tensors.size(); ++i) {
    const bool is_a = i < layout.modules.size();
    EXPECT_EQ(layout.tensors[i].kind, is_a ? AdapterTensorKind::LoraA : AdapterTensorKind::LoraB);
    EXPECT_EQ(layout.tensors[i].index, is_a ? i : i - layout.modules.size());
  }
  for (size_t i = 0; i < layout.modules.size(); ++i) {
    const LoraModule& m = layout.modules[i];
    EXPECT_EQ(m.site, i);
    EXPECT_EQ(m.a.index, i);
    EXPECT_EQ(m.a.kind, AdapterTensorKind::LoraA);
    EXPECT_EQ(m.b.kind, AdapterTensorKind::LoraB);
  }
}

TEST(AdapterLayout, RowParallelLayersCutAByColumnsOthersBByRows) {
  const AdapterLayout whole = layout_of(3, 0, 1), part = layout_of(3, 1, 2);
  for (size_t i = 0; i < whole.tensors.size(); ++i) {
    const AdapterTensor &t = part.tensors[i], &w = whole.tensors[i];
    EXPECT_EQ(t.offset, w.offset);
    const std::string& name = part.modules[t.index].linear.name;
    const bool row_parallel = name.ends_with("o_proj") || name.ends_with("down_proj");
    const bool is_a = t.kind == AdapterTensorKind::LoraA;
    EXPECT_EQ(t.local_cols.at(0).size() < t.cols, row_parallel && is_a) << name;
    EXPECT_EQ(t.local_rows.at(0).size() < t.rows, !row_parallel && !is_a) << name;
  }
}

// Of GPT-2's c_attn, B's rows of q, k and v.
TEST(AdapterLayout, AFusedModuleCutsBInThree) {
  const auto base = BaseModel::open((golden("peft/gpt2") / "model").string());
  const AdapterLayout layout =
      adapter_layout(base->config(), linear_modules(base->config()), {}, 1, 2);
  const LoraModule& m = layout.modules[0];
  ASSERT_EQ(m.linear.name, "transformer.h.0.attn.c_attn");
  EXPECT_EQ(m.b.local_rows, (std::vector<Range>{{24, 48}, {72, 96}, {120, 144}}));
  EXPECT_EQ(m.a.local_rows.size(), 1u);
  std::vector<float> flat(size_t(layout.size));
  EXPECT_EQ(local_block(m.b, flat.data(), 2).at(0, 0),
            reinterpret_cast<char*>(flat.data() + m.b.offset + 120 * m.lora_rank));
}

TEST(Factors, GoToModulesAndBack) {
  Stream stream(1);
  Factors factors(stream, layout_of(3, 0, 1));
  std::vector<float> flat(static_cast<size_t>(factors.size()));
  std::iota(flat.begin(), flat.end(), 0.0f);
  factors.write(factors.values(), flat);
  const AdapterValues values = factors.read_values(factors.values());
  const std::vector<AdapterModule>& modules = values.modules;
  const LoraModule& m = factors.modules()[1];
  EXPECT_EQ(modules[1].name, m.linear.name);
  EXPECT_EQ(modules[1].a[0], float(m.a.offset));
  EXPECT_EQ(modules[1].b.back(), float(m.b.offset + m.b.size() - 1));
  factors.write(factors.values(), std::vector<float>(flat.size()));
  factors.write_values(factors.values(), values);
  EXPECT_EQ(factors.read(factors.values()), flat);
}

// Address space of the process, or allocated memory of the device.
int64_t taken(const Stream& stream) {
  if (stream.backend() == Backend::CUDA) return -int64_t(stream.available_bytes());
  std::ifstream status("/proc/self/statm");
  int64_t pages = 0;
  status >> pages;
  return pages * 4096;
}

// An adapter of 64 MiB: what eval and generate have is its values; gradients and moments, three
// times as much, are training's.
TEST(Factors, AreValuesAloneUntilOneTrains) {
  for (const Backend backend : {Backend::CPU, Backend::CUDA}) {
    if (backend == Backend::CUDA && cuda_devices() == 0) continue;
    Stream stream(backend, 1);
    const int64_t rank = (16 << 20) / layout_of(1, 0, 1).size;
    const int64_t before = taken(stream);
    const Factors factors(stream, layout_of(rank, 0, 1));
    const int64_t bytes = factors.size() * 4, adapter = taken(stream) - before;
    EXPECT_GE(adapter, bytes);
    EXPECT_LT(adapter, bytes * 5 / 4);
    const TrainingBuffers buffers(stream, factors.size(), 1);
    const int64_t training = taken(stream) - before - adapter;
    EXPECT_GE(training, 3 * bytes);
    EXPECT_LT(training, bytes * 13 / 4);
  }
}

}  // namespace
}  // namespace lorashard::test
