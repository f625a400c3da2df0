// The rate of every kernel beside its roofline, measured in the same run: oneDNN's sgemm for
// products, a parallel copy for passes over memory.
//
// Columns: rate in GFLOP/s or GB/s, roof in the same unit, share = rate / roof. Rates are those of
// the fastest iteration, because other programs slow a shared machine down but never speed it up.
// Threads: BENCH_THREADS, by default what the process may run on.
#include <benchmark/benchmark.h>
#include <dnnl.h>
#include <omp.h>

#include <cstdlib>
#include <cstring>
#include <ctime>
#include <vector>

#include "kernels/activation.h"
#include "kernels/adamw.h"
#include "kernels/attention.h"
#include "kernels/cross_entropy.h"
#include "kernels/dropout.h"
#include "kernels/elementwise.h"
#include "kernels/matmul.h"
#include "kernels/parallel_for.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"

namespace lorashard {
namespace {

const DType F = DType::F32, B = DType::BF16;

Stream& stream() {
  static Stream s(std::getenv("BENCH_THREADS") ? std::atoi(std::getenv("BENCH_THREADS")) : 0);
  return s;
}

// One thread is timed by its processor time, which other programs hardly disturb; several by the
// clock on the wall.
double now() {
  timespec t;
  clock_gettime(stream().threads() == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

double seconds(const auto& call) {
  const double begin = now();
  call();
  return now() - begin;
}

// Seconds of the fastest call within about a quarter of a second.
double fastest(const auto& call) {
  call();
  double best = 1e9, spent = 0;
  for (int i = 0; i < 5 || (spent < 0.25 && i < 10000); ++i) {
    const double t = seconds(call);
    best = std::min(best, t), spent += t;
  }
  return best;
}

// Memory filled with small values, so that no pass meets denormals or pages not yet touched.
struct Data {
  Data(int64_t rows, int64_t cols, DType t)
      : buffer(stream(), size_t(rows * cols * size_of(t))),
        m(matrix(buffer.data(), rows, cols, t)) {
    std::vector<float> row(static_cast<size_t>(cols));
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < cols; ++j)
        row[size_t(j)] = float((i * 31 + j * 17) % 101 - 50) / 50.0f;
      convert(stream(), m.row_range(i, 1), const_matrix(row.data(), 1, cols, F));
    }
  }
  operator Matrix() const { return m; }
  operator ConstMatrix() const { return m; }
  float* floats() const { return buffer.as<float>(); }

  Buffer buffer;
  Matrix m;
};

// Runs `call`, which does `work` (flops or bytes), and reports it beside `roof` per second.
void report(benchmark::State& state, double work, double roof, const auto& call) {
  double best = 1e9;
  for (auto _ : state) best = std::min(best, seconds(call));
  state.counters["rate"] = work / best * 1e-9;
  state.counters["roof"] = roof * 1e-9;
  state.counters["share"] = work / best / roof;
}

// Flops per second of oneDNN's sgemm for y(m,n) = x(m,k) w(n,k)^T.
double sgemm_rate(int64_t m, int64_t n, int64_t k) {
  const Data x(m, k, F), w(n, k, F), y(m, n, F);
  omp_set_num_threads(stream().threads());
  return 2.0 * double(m * n * k) / fastest([&] {
           dnnl_sgemm('N', 'T', m, n, k, 1, x.floats(), k, w.floats(), k, 0, y.floats(), n);
         });
}

// The rate of attention's roof: a product large enough for oneDNN's best.
double best_sgemm_rate() {
  static const double rate = sgemm_rate(1024, 576, 576);
  return rate;
}

// Bytes read and written per second by a parallel copy of 64 MiB.
double copy_rate() {
  static const double rate = [] {
    const int64_t n = 32 << 20;
    const Data from(32, n / 32, B), to(32, n / 32, B);
    return 2.0 * double(n) * 2 / fastest([&] {
             parallel_for(stream(), 32, 1, [&](int64_t begin, int64_t end) {
               std::memcpy(to.m.at(begin, 0), from.m.at(begin, 0),
                           size_t((end - begin) * n / 32 * 2));
             });
           });
  }();
  return rate;
}

void products(benchmark::internal::Benchmark* b) {
  b->ArgNames({"m", "n", "k"});
  for (int64_t n : {192, 576, 1536, 4096}) b->Args({1024, n, 576});
  b->Args({1024, 576, 1536});
  for (int64_t r : {8, 16, 64}) b->Args({1024, r, 576})->Args({1024, 576, r});
  for (int64_t m : {1, 8}) b->Args({m, 576, 576})->Args({m, 4096, 576});
}

template <auto Product, DType X, DType W, DType Y>
void Matmul(benchmark::State& state) {
  const int64_t m = state.range(0), n = state.range(1), k = state.range(2);
  const bool nt = Product == static_cast<decltype(Product)>(matmul_nt);
  const Data x(m, k, X), w(nt ? n : k, nt ? k : n, W), y(m, n, Y);
  report(state, 2.0 * double(m * n * k), sgemm_rate(m, n, k),
         [&] { Product(stream(), y, x, w, 1, 0); });
}
using ProductFunction = void (*)(Stream&, Matrix, ConstMatrix, ConstMatrix, float, float);
constexpr ProductFunction kNT = matmul_nt, kNN = matmul_nn;
BENCHMARK(Matmul<kNT, F, F, F>)->Name("MatmulNT/f32")->Apply(products);
BENCHMARK(Matmul<kNN, F, F, F>)->Name("MatmulNN/f32")->Apply(products);
BENCHMARK(Matmul<kNT, F, B, F>)->Name("MatmulNT/f32_bf16")->Apply(products);
BENCHMARK(Matmul<kNN, F, B, F>)->Name("MatmulNN/f32_bf16")->Apply(products);
BENCHMARK(Matmul<kNT, B, B, B>)->Name("MatmulNT/bf16")->Apply(products);
BENCHMARK(Matmul<kNN, B, B, B>)->Name("MatmulNN/bf16")->Apply(products);

// Gradients of LoRA factors: dA(r,in) and dB(out,r) over T tokens.
void MatmulTN(benchmark::State& state) {
  const int64_t m = state.range(0), n = state.range(1), t = state.range(2);
  const Data a(t, m, F), b(t, n, F), y(m, n, F);
  report(state, 2.0 * double(m * n * t), sgemm_rate(m, n, t),
         [&] { matmul_tn(stream(), y, a, b, 1, 1); });
}
BENCHMARK(MatmulTN)
    ->ArgNames({"m", "n", "t"})
    ->Args({8, 576, 1024})
    ->Args({576, 8, 1024})
    ->Args({64, 576, 1024});

struct AttentionData {
  AttentionData(int64_t batch, int64_t t, int64_t heads, int64_t kv_heads, int64_t d, DType type,
                int64_t queries = 0)
      : q(batch * (queries ? queries : t), heads * d, type),
        o(q.m.rows, heads * d, type),
        g(q.m.rows, heads * d, type),
        dq(q.m.rows, heads * d, type),
        lse(q.m.rows, heads, F),
        k(batch * t, kv_heads * d, type),
        v(batch * t, kv_heads * d, type),
        dk(batch * t, kv_heads * d, type),
        dv(batch * t, kv_heads * d, type) {
    if (queries == 0) queries = t;
    for (int64_t b = 0; b <= batch; ++b) {
      q_offsets.push_back(int32_t(b * queries));
      kv_offsets.push_back(int32_t(b * t));
    }
    shape = {.heads = heads,
             .kv_heads = kv_heads,
             .head_dim = d,
             .group = heads / kv_heads,
             .scale = 0.125f};
    // Query-key pairs, times D multiply-adds, for one of the products.
    flops = 2.0 * double(batch * heads * d) * double(queries) *
            (double(t) - 0.5 * double(queries) + 0.5);
  }
  Data q, o, g, dq, lse, k, v, dk, dv;
  std::vector<int32_t> q_offsets, kv_offsets;
  AttentionShape shape;
  double flops;
};

template <DType T>
void AttentionForward(benchmark::State& state) {
  const AttentionData a(state.range(0), state.range(1), state.range(2), state.range(3),
                        state.range(4), T);
  report(state, 2 * a.flops, best_sgemm_rate(), [&] {
    attention_forward(stream(), a.o, a.lse, a.q, a.k, a.v, {a.q_offsets, a.kv_offsets}, a.shape);
  });
}
template <DType T>
void AttentionBackward(benchmark::State& state) {
  const AttentionData a(state.range(0), state.range(1), state.range(2), state.range(3),
                        state.range(4), T);
  attention_forward(stream(), a.o, a.lse, a.q, a.k, a.v, {a.q_offsets, a.kv_offsets}, a.shape);
  report(state, 5 * a.flops, best_sgemm_rate(), [&] {
    attention_backward(stream(), a.dq, a.dk, a.dv, a.g, a.q, a.k, a.v, a.o, a.lse,
                       {a.q_offsets, a.kv_offsets}, a.shape);
  });
}
void attention_shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"batch", "t", "heads", "kv", "d"})
      ->Args({2, 512, 9, 3, 64})
      ->Args({1, 4096, 9, 3, 64})
      ->Args({2, 512, 12, 12, 64})
      ->Args({1, 1024, 8, 2, 128});
}
BENCHMARK(AttentionForward<DType::F32>)->Name("AttentionForward/f32")->Apply(attention_shapes);
BENCHMARK(AttentionForward<DType::BF16>)->Name("AttentionForward/bf16")->Apply(attention_shapes);
BENCHMARK(AttentionBackward<DType::F32>)->Name("AttentionBackward/f32")->Apply(attention_shapes);
BENCHMARK(AttentionBackward<DType::BF16>)->Name("AttentionBackward/bf16")->Apply(attention_shapes);

// One new token against a cache: the keys and values are read once.
template <DType T>
void AttentionDecode(benchmark::State& state) {
  const int64_t t = state.range(0);
  const AttentionData a(1, t, 9, 3, 64, T, 1);
  report(state, double(2 * t * 3 * 64 * size_of(T)), copy_rate(), [&] {
    attention_forward(stream(), a.o, {}, a.q, a.k, a.v, {a.q_offsets, a.kv_offsets}, a.shape);
  });
}
BENCHMARK(AttentionDecode<DType::F32>)->Name("AttentionDecode/f32")->Arg(512)->Arg(8192);
BENCHMARK(AttentionDecode<DType::BF16>)->Name("AttentionDecode/bf16")->Arg(512)->Arg(8192);

// ---- passes over memory: 1024 tokens of a small model, or a row of logits

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
void SwigluForward(benchmark::State& state) {
  const Data y(1024, 1536, T), gate(1024, 1536, T), up(1024, 1536, T);
  report(state, 3.0 * 1024 * 1536 * size_of(T), copy_rate(),
         [&] { gated_activation_forward(stream(), y, gate, up, Activation::SILU); });
}
template <DType T>
void SwigluBackward(benchmark::State& state) {
  const Data dy(1024, 1536, T), gate(1024, 1536, T), up(1024, 1536, T), dg(1024, 1536, T),
      du(1024, 1536, T);
  report(state, 5.0 * 1024 * 1536 * size_of(T), copy_rate(),
         [&] { gated_activation_backward(stream(), dg, du, dy, gate, up, Activation::SILU); });
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
void Widen(benchmark::State& state) {
  const Data x(1024, 4096, B), y(1024, 4096, F);
  report(state, 6.0 * 1024 * 4096, copy_rate(), [&] { convert(stream(), y, x); });
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
BENCHMARK(RmsNormBackward<DType::F32>);
BENCHMARK(RmsNormBackward<DType::BF16>);
BENCHMARK(SwigluForward<DType::F32>);
BENCHMARK(SwigluForward<DType::BF16>);
BENCHMARK(SwigluBackward<DType::F32>);
BENCHMARK(SwigluBackward<DType::BF16>);
BENCHMARK(Rope<DType::F32>);
BENCHMARK(Rope<DType::BF16>);
BENCHMARK(Dropout<DType::F32>);
BENCHMARK(Dropout<DType::BF16>);
BENCHMARK(AddResidual<DType::F32>);
BENCHMARK(AddResidual<DType::BF16>);
BENCHMARK(CrossEntropy<DType::F32>)->Arg(49152)->Arg(262144);
BENCHMARK(CrossEntropy<DType::BF16>)->Arg(49152);
BENCHMARK(Widen);
BENCHMARK(AdamW);

}  // namespace
}  // namespace lorashard
