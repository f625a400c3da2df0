// Elementwise and row kernels, on 1024 tokens of a small model or on rows of logits: their roof is
// the rate of a copy. Those that compute much for each value (dropout draws random words, gated
// activations and cross entropy take exponentials) stay below it on one thread.
#include "tests/bench/kernels_bench.h"
#include "kernels/activation.h"
#include "kernels/adamw.h"
#include "kernels/columns.h"
#include "kernels/cross_entropy.h"
#include "kernels/dequantize.h"
#include "kernels/dora.h"
#include "kernels/dropout.h"
#include "kernels/embedding.h"
#include "kernels/layer_norm.h"
#include "kernels/preference.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/rows.h"
#include "kernels/transfer.h"

namespace lorashard {
namespace {

template <DType T>
void RmsNormForward(benchmark::State& state) {
  const Data x(1024, 576, T), y(1024, 576, T), gain(1, 576, B), rstd(1024, 1, F);
  report(state, 2.0 * 1024 * 576 * size_of(T), copy_rate(),
         [&] { rms_norm_forward(stream(), y, rstd, x, gain, 1e-5f, 0); });
}
template <DType T>
void RmsNormBackward(benchmark::State& state) {
  const Data x(1024, 576, T), dx(1024, 576, T), dy(1024, 576, T), gain(1, 576, B), rstd(1024, 1, F);
  report(state, 4.0 * 1024 * 576 * size_of(T), copy_rate(),
         [&] { rms_norm_backward(stream(), dx, dy, x, rstd, gain, 0, true); });
}
template <DType T>
void RmsNormGainBackward(benchmark::State& state) {
  const Data x(1024, 576, T), dy(1024, 576, T), d_gain(1, 576, F), rstd(1024, 1, F);
  report(state, 2.0 * 1024 * 576 * size_of(T), copy_rate(),
         [&] { rms_norm_gain_backward(stream(), d_gain, dy, x, rstd); });
}
// With the residual's sum on the way: x and delta in, the sum and its norm out.
template <DType T>
void AddRmsNormForward(benchmark::State& state) {
  const Data x(1024, 576, T), delta(1024, 576, T), sum(1024, 576, T), y(1024, 576, T),
      gain(1, 576, B), rstd(1024, 1, F);
  report(state, 4.0 * 1024 * 576 * size_of(T), copy_rate(), [&] {
    rms_norm_forward(stream(), y, rstd, x, gain, 1e-5f, 0, {sum, delta, {}});
  });
}
template <DType T>
void LayerNormForward(benchmark::State& state) {
  const Data x(1024, 768, T), y(1024, 768, T), gain(1, 768, B), bias(1, 768, B), stats(1024, 2, F);
  report(state, 2.0 * 1024 * 768 * size_of(T), copy_rate(),
         [&] { layer_norm_forward(stream(), y, stats, x, gain, bias, 1e-5f); });
}
template <DType T>
void LayerNormBackward(benchmark::State& state) {
  const Data x(1024, 768, T), dx(1024, 768, T), dy(1024, 768, T), gain(1, 768, B),
      stats(1024, 2, F);
  report(state, 4.0 * 1024 * 768 * size_of(T), copy_rate(),
         [&] { layer_norm_backward(stream(), dx, dy, x, stats, gain, true); });
}
// The norms of queries and keys, one for each head of 64 columns (Qwen3, Gemma 3).
void HeadNormForward(benchmark::State& state) {
  const Data x(1024, 576, F), y(1024, 576, F), gain(1, 64, B), rstd(1024, 9, F);
  report(state, 2.0 * 1024 * 576 * 4, copy_rate(),
         [&] { rms_norm_forward(stream(), y, rstd, x, gain, 1e-5f, 0); });
}
void HeadNormBackward(benchmark::State& state) {
  const Data x(1024, 576, F), dx(1024, 576, F), dy(1024, 576, F), gain(1, 64, B), rstd(1024, 9, F);
  report(state, 3.0 * 1024 * 576 * 4, copy_rate(),
         [&] { rms_norm_backward(stream(), dx, dy, x, rstd, gain, 0, false); });
}
template <DType T, Activation A>
void GatedForward(benchmark::State& state) {
  const Data y(1024, 1536, T), gate(1024, 1536, T), up(1024, 1536, T);
  report(state, 3.0 * 1024 * 1536 * size_of(T), copy_rate(),
         [&] { gated_activation_forward(stream(), y, gate, up, A); });
}
template <DType T, Activation A>
void GatedBackward(benchmark::State& state) {
  const Data dy(1024, 1536, T), gate(1024, 1536, T), up(1024, 1536, T), dg(1024, 1536, T),
      du(1024, 1536, T);
  report(state, 5.0 * 1024 * 1536 * size_of(T), copy_rate(),
         [&] { gated_activation_backward(stream(), dg, du, dy, gate, up, A); });
}
template <DType T>
void Rope(benchmark::State& state) {
  const Data x(1024, 576, T), table(1024, 64, F);
  std::vector<int32_t> positions(1024);
  report(state, 2.0 * 1024 * 576 * size_of(T), copy_rate(),
         [&] { rope(stream(), x, 9, positions.data(), table, false); });
}
template <DType T>
void Dropout(benchmark::State& state) {
  const Data x(1024, 576, T), y(1024, 576, T);
  std::vector<uint64_t> keys(1024);
  report(state, 2.0 * 1024 * 576 * size_of(T), copy_rate(),
         [&] { dropout(stream(), y, x, 1, 2, keys.data(), 0, 0.1f, false); });
}
template <DType T>
void AddResidual(benchmark::State& state) {
  const Data y(1024, 576, T), x(1024, 576, T);
  report(state, 3.0 * 1024 * 576 * size_of(T), copy_rate(), [&] { add(stream(), y, y, x); });
}
template <DType T>
void CrossEntropy(benchmark::State& state) {
  const int64_t v = state.range(0), rows = (16 << 20) / (4 * v);
  const Data logits(rows, v, T), stats(rows, 3, F);
  std::vector<int32_t> labels(static_cast<size_t>(rows), 5);
  std::vector<float> lse(static_cast<size_t>(rows), 11.0f);
  report(state, 3.0 * double(rows * v * size_of(T)), copy_rate(), [&] {
    cross_entropy_stats(stream(), stats, logits, labels.data(), 0);
    cross_entropy_gradient(stream(), logits, lse.data(), labels.data(), 0, 1.0f);
  });
}
// Four ranks' statistics of one chunk of 4096 labels.
void CrossEntropyCombine(benchmark::State& state) {
  const int64_t rows = 4096, ranks = 4;
  const Data stats(ranks * rows, 3, F), lse(1, rows, F);
  // The sums of exponentials, which the statistics hold second, are above 0.
  for (int64_t i = 0; i < ranks * rows; ++i) stats.floats()[3 * i + 1] = 1.0f + float(i % 5);
  double loss = 0;
  report(state, 4.0 * double(ranks * rows * 3 + rows), copy_rate(),
         [&] { cross_entropy_combine(stream(), lse.floats(), &loss, stats, int(ranks)); });
  benchmark::DoNotOptimize(loss);
}
// Four pairs of 2048 rows a sequence.
void PreferenceLoss(benchmark::State& state) {
  const std::vector<int32_t> rows{0, 2048, 4096, 6144, 8192, 10240, 12288, 14336, 16384};
  const std::vector<double> losses(16384, 1.0), reference(8, -2048.0);
  std::vector<double> logps(8);
  std::vector<float> factors(16384);
  LossTotals totals;
  report(state, 16384.0 * 12, copy_rate(), [&] {
    sequence_logps(stream(), logps.data(), losses.data(), rows.data(), 8);
    preference_loss(stream(), factors.data(), &totals, logps.data(), reference.data(), rows.data(),
                    4, 0.1);
  });
  benchmark::DoNotOptimize(totals.loss);
}
template <DType From, DType To>
void Convert(benchmark::State& state) {
  const Data x(1024, 4096, From), y(1024, 4096, To);
  report(state, double(size_of(From) + size_of(To)) * 1024 * 4096, copy_rate(),
         [&] { convert(stream(), y, x); });
}
// Quantised weights: the codes are read, and four or eight times as many bytes written.
template <DType Y, bool QuantisedMaxima>
void DequantizeNf4(benchmark::State& state) {
  const int64_t n = 1024 * 4096;
  const Data y(1024, 4096, Y), absmax(1, n / kNf4Block, F), levels(1, 256, F),
      scales(1, n / kNf4Block / kNf4AbsmaxBlock, F);
  std::vector<uint8_t> codes(size_t(n / 2), 0x5A), absmax_codes(size_t(n / kNf4Block), 200);
  Nf4Matrix w{.codes = codes.data(), .rows = 1024, .cols = 4096, .ld = 4096};
  if (QuantisedMaxima) {
    w.absmax_codes = absmax_codes.data();
    w.absmax_levels = levels.floats();
    w.absmax_scales = scales.floats();
  } else {
    w.absmax = absmax.floats();
  }
  report(state, double(n) * (0.5 + double(size_of(Y))), copy_rate(),
         [&] { dequantize_nf4(stream(), y, w); });
}
template <DType Y>
void DequantizeInt8(benchmark::State& state) {
  const Data y(1024, 4096, Y), scales(1, 1024, F);
  std::vector<int8_t> codes(1024 * 4096, 77);
  report(state, 1024.0 * 4096 * (1 + double(size_of(Y))), copy_rate(), [&] {
    dequantize_int8(stream(), y, const_matrix(codes.data(), 1024, 4096, DType::I8),
                    scales.floats());
  });
}
template <DType T>
void FillZero(benchmark::State& state) {
  const Data y(4096, 4096, T);
  report(state, double(size_of(T)) * 4096 * 4096, copy_rate(), [&] { fill_zero(stream(), y); });
}
template <DType T>
void AddBias(benchmark::State& state) {
  const Data y(1024, 1536, T), bias(1, 1536, B);
  report(state, 2.0 * 1024 * 1536 * size_of(T), copy_rate(), [&] { add_bias(stream(), y, bias); });
}
template <DType T>
void ColumnSums(benchmark::State& state) {
  const Data x(1024, 1536, T), y(1024, 1536, T), sums(1, 1536, F);
  report(state, 2.0 * 1024 * 1536 * size_of(T), copy_rate(),
         [&] { add_column_sums(stream(), sums, x, y); });
}
template <DType T>
void ScaleColumns(benchmark::State& state) {
  const Data x(1024, 1536, T), y(1024, 1536, T), factors(1, 1536, F);
  report(state, 2.0 * 1024 * 1536 * size_of(T), copy_rate(),
         [&] { scale_columns(stream(), y, x, factors); });
}
template <DType T>
void RowSquares(benchmark::State& state) {
  const Data w(1536, 576, T), squares(1, 1536, F);
  report(state, 1.0 * 1536 * 576 * size_of(T), copy_rate(),
         [&] { row_squares(stream(), squares, w); });
}
void DoraSquares(benchmark::State& state) {
  const Data p(16, 1536, F), b(1536, 16, F), gram(16, 16, F), base(1, 1536, F), squares(1, 1536, F);
  report(state, 2.0 * 16 * 1536 * 4, copy_rate(),
         [&] { dora_squares(stream(), squares, base, p, b, gram, 2); });
}
void DoraScales(benchmark::State& state) {
  const Data squares(1, 1536, F), m(1, 1536, F), scale(1, 1536, F), excess(1, 1536, F),
      inverse(1, 1536, F);
  report(state, 5.0 * 1536 * 4, copy_rate(),
         [&] { dora_scales(stream(), scale, excess, inverse, squares, m); });
}
template <DType T>
void Scale(benchmark::State& state) {
  const Data y(1024, 1536, T);
  report(state, 2.0 * 1024 * 1536 * size_of(T), copy_rate(), [&] { scale(stream(), y, -1.0f); });
}
// Rows far apart in a table larger than any cache.
template <DType Table, DType Y>
void Embedding(benchmark::State& state) {
  const int64_t vocab = 49152;
  const Data table(vocab, 576, Table), y(1024, 576, Y);
  std::vector<int32_t> ids(1024);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = int32_t(i * 7919 % size_t(vocab));
  report(state, double(size_of(Table) + size_of(Y)) * 1024 * 576, copy_rate(),
         [&] { embedding_forward(stream(), y, ids.data(), table, 0, 1.0f); });
}
// Tokens of which half occur more than once.
template <DType Y>
void EmbeddingBackward(benchmark::State& state) {
  const int64_t vocab = 49152;
  const Data table(vocab, 576, DType::F32), dy(1024, 576, Y);
  std::vector<int32_t> ids(1024);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = int32_t((i % 512) * 7919 % size_t(vocab));
  report(state, double(8 + size_of(Y)) * 1024 * 576, copy_rate(),
         [&] { embedding_backward(stream(), table, ids.data(), dy, 0, 1.0f); });
}
// Of logits, where a few tokens have rows of their own.
void PutAndTakeColumns(benchmark::State& state) {
  const Data y(256, 49152, DType::F32), x(256, 64, DType::F32);
  std::vector<int32_t> cols(64);
  for (size_t k = 0; k < cols.size(); ++k) cols[k] = int32_t(k * 700);
  report(state, 6.0 * 4 * 256 * 64, copy_rate(), [&] {
    put_columns(stream(), y, x, cols.data(), 0);
    take_columns(stream(), x, y, cols.data(), 0);
  });
}
// Every second row, as where only completions have labels.
template <DType T>
void GatherRows(benchmark::State& state) {
  const Data x(2048, 576, T), y(1024, 576, T);
  std::vector<int32_t> rows(1024);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = int32_t(2 * i);
  report(state, 2.0 * 1024 * 576 * size_of(T), copy_rate(),
         [&] { gather_rows(stream(), y, x, rows.data()); });
}
template <DType T>
void ScatterRows(benchmark::State& state) {
  const Data x(1024, 576, T), y(2048, 576, T);
  std::vector<int32_t> rows(1024);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = int32_t(2 * i);
  report(state, 4.0 * 1024 * 576 * size_of(T), copy_rate(),  // 1 read, 2 zeroed, 1 written
         [&] { scatter_rows(stream(), y, x, rows.data()); });
}
void SumOfSquares(benchmark::State& state) {
  const int64_t n = 4 << 20;
  const Data x(4, n / 4, F);
  double sum = 0;
  report(state, 4.0 * double(n), copy_rate(),
         [&] { sum_of_squares(stream(), &sum, x.floats(), n); });
  benchmark::DoNotOptimize(sum);
}
// One value: what is timed is the call, and there is no roof.
void SplitDouble(benchmark::State& state) {
  double x = 1.0 / 3.0;
  float high = 0, low = 0;
  for (auto _ : state) {
    split_double(stream(), &high, &low, &x);
    benchmark::DoNotOptimize(high + low);
  }
}
// Host to device and back; on the CPU both are copies within memory.
void CopyToDevice(benchmark::State& state) {
  const Data x(1024, 4096, F), y(1024, 4096, F);
  report(state, 2.0 * double(x.buffer.bytes()), copy_rate(), [&] {
    copy_to_device(stream(), y.buffer.data(), x.buffer.data(), int64_t(x.buffer.bytes()));
  });
}
void CopyToHost(benchmark::State& state) {
  const Data x(1024, 4096, F), y(1024, 4096, F);
  report(state, 2.0 * double(x.buffer.bytes()), copy_rate(), [&] {
    copy_to_host(stream(), y.buffer.data(), x.buffer.data(), int64_t(x.buffer.bytes()));
  });
}
// Half of the columns, as a rank's slice of a larger matrix.
void CopyMatrixToDevice(benchmark::State& state) {
  const Data x(1024, 8192, F), y(1024, 4096, F);
  report(state, 2.0 * double(y.buffer.bytes()), copy_rate(),
         [&] { copy_matrix_to_device(stream(), y, ConstMatrix(x).col_range(4096, 4096)); });
}
void AdamW(benchmark::State& state) {
  const int64_t n = 4 << 20;
  const Data p(4, n / 4, F), g(4, n / 4, F), m(4, n / 4, F), v(4, n / 4, F);
  std::memset(v.buffer.data(), 0, v.buffer.bytes());
  int64_t step = 0;
  report(state, 7.0 * double(n) * 4, copy_rate(), [&] {
    adamw(stream(), p.floats(), m.floats(), v.floats(), g.floats(), n,
          {.learning_rate = 1e-4f,
           .beta1 = 0.9f,
           .beta2 = 0.999f,
           .epsilon = 1e-8f,
           .weight_decay = 0.1f,
           .step = ++step,
           .gradient_scale = 1});
  });
}
BENCHMARK(RmsNormForward<DType::F32>);
BENCHMARK(RmsNormForward<DType::BF16>);
BENCHMARK(AddRmsNormForward<DType::F32>);
BENCHMARK(AddRmsNormForward<DType::BF16>);
BENCHMARK(LayerNormForward<DType::F32>);
BENCHMARK(LayerNormForward<DType::BF16>);
BENCHMARK(LayerNormBackward<DType::F32>);
BENCHMARK(LayerNormBackward<DType::BF16>);
BENCHMARK(RmsNormBackward<DType::F32>);
BENCHMARK(RmsNormBackward<DType::BF16>);
BENCHMARK(RmsNormGainBackward<DType::F32>);
BENCHMARK(RmsNormGainBackward<DType::BF16>);
BENCHMARK(HeadNormForward);
BENCHMARK(HeadNormBackward);
BENCHMARK(GatedForward<DType::F32, Activation::SILU>);
BENCHMARK(GatedForward<DType::F32, Activation::GELU>);
BENCHMARK(GatedForward<DType::F32, Activation::GELU_TANH>);
BENCHMARK(GatedForward<DType::BF16, Activation::SILU>);
BENCHMARK(GatedForward<DType::BF16, Activation::GELU_TANH>);
BENCHMARK(GatedBackward<DType::F32, Activation::SILU>);
BENCHMARK(GatedBackward<DType::F32, Activation::GELU>);
BENCHMARK(GatedBackward<DType::F32, Activation::GELU_TANH>);
BENCHMARK(GatedBackward<DType::BF16, Activation::SILU>);
BENCHMARK(GatedBackward<DType::BF16, Activation::GELU_TANH>);
BENCHMARK(Rope<DType::F32>);
BENCHMARK(Rope<DType::BF16>);
BENCHMARK(Dropout<DType::F32>);
BENCHMARK(Dropout<DType::BF16>);
BENCHMARK(AddResidual<DType::F32>);
BENCHMARK(AddResidual<DType::BF16>);
BENCHMARK(CrossEntropy<DType::F32>)->Arg(49152)->Arg(262144);
BENCHMARK(CrossEntropy<DType::BF16>)->Arg(49152);
BENCHMARK(CrossEntropyCombine);
BENCHMARK(PreferenceLoss);
BENCHMARK(Convert<DType::BF16, DType::F32>);
BENCHMARK(Convert<DType::F16, DType::F32>);
BENCHMARK(Convert<DType::F32, DType::BF16>);
BENCHMARK(Convert<DType::F32, DType::F16>);
BENCHMARK(DequantizeNf4<DType::F32, false>);
BENCHMARK(DequantizeNf4<DType::F32, true>);
BENCHMARK(DequantizeNf4<DType::BF16, true>);
BENCHMARK(DequantizeInt8<DType::F32>);
BENCHMARK(DequantizeInt8<DType::BF16>);
BENCHMARK(FillZero<DType::F32>);
BENCHMARK(AddBias<DType::F32>);
BENCHMARK(AddBias<DType::BF16>);
BENCHMARK(ColumnSums<DType::F32>);
BENCHMARK(ColumnSums<DType::BF16>);
BENCHMARK(ScaleColumns<DType::F32>);
BENCHMARK(ScaleColumns<DType::BF16>);
BENCHMARK(RowSquares<DType::F32>);
BENCHMARK(RowSquares<DType::BF16>);
BENCHMARK(DoraSquares);
BENCHMARK(DoraScales);
BENCHMARK(Scale<DType::F32>);
BENCHMARK(Scale<DType::BF16>);
BENCHMARK(Embedding<DType::BF16, DType::F32>);
BENCHMARK(Embedding<DType::F32, DType::F32>);
BENCHMARK(Embedding<DType::BF16, DType::BF16>);
BENCHMARK(EmbeddingBackward<DType::F32>);
BENCHMARK(EmbeddingBackward<DType::BF16>);
BENCHMARK(PutAndTakeColumns);
BENCHMARK(GatherRows<DType::F32>);
BENCHMARK(GatherRows<DType::BF16>);
BENCHMARK(ScatterRows<DType::F32>);
BENCHMARK(ScatterRows<DType::BF16>);
BENCHMARK(SumOfSquares);
BENCHMARK(SplitDouble);
BENCHMARK(CopyToDevice);
BENCHMARK(CopyToHost);
BENCHMARK(CopyMatrixToDevice);
BENCHMARK(AdamW);

}  // namespace
}  // namespace lorashard
