// GEMM and attention: their roof is oneDNN's sgemm, on the same shape for GEMMs and on a large one
// for attention. Decoding reads a cache once, and its roof is the copy.
#include "kernels/attention.h"
#include "kernels/lora_dropout.h"
#include "kernels/matmul.h"
#include "tests/bench/kernels_bench.h"

namespace lorashard {
namespace {

void gemms(benchmark::internal::Benchmark* b) {
  b->ArgNames({"m", "n", "k"});
  for (int64_t n : {192, 576, 1536, 4096}) b->Args({1024, n, 576});
  b->Args({1024, 576, 1536});
  for (int64_t r : {8, 16, 64}) b->Args({1024, r, 576})->Args({1024, 576, r});
  for (int64_t m : {1, 8}) b->Args({m, 576, 576})->Args({m, 4096, 576});
}

template <auto Gemm, DType X, DType W, DType Y>
void Matmul(benchmark::State& state) {
  const int64_t m = state.range(0), n = state.range(1), k = state.range(2);
  const bool nt = Gemm == static_cast<decltype(Gemm)>(matmul_nt);
  const Data x(m, k, X), w(nt ? n : k, nt ? k : n, W), y(m, n, Y);
  report(state, 2.0 * double(m * n * k), sgemm_rate(m, n, k),
         [&] { Gemm(stream(), y, x, w, 1, 0); });
}
using GemmFunction = void (*)(Stream&, Matrix, ConstMatrix, ConstMatrix, float, float);
constexpr GemmFunction kNT = matmul_nt, kNN = matmul_nn;
BENCHMARK(Matmul<kNT, F, F, F>)->Name("MatmulNT/f32")->Apply(gemms);
BENCHMARK(Matmul<kNN, F, F, F>)->Name("MatmulNN/f32")->Apply(gemms);
BENCHMARK(Matmul<kNT, F, B, F>)->Name("MatmulNT/f32_bf16")->Apply(gemms);
BENCHMARK(Matmul<kNN, F, B, F>)->Name("MatmulNN/f32_bf16")->Apply(gemms);
BENCHMARK(Matmul<kNT, F, H, F>)->Name("MatmulNT/f32_f16")->Apply(gemms);
BENCHMARK(Matmul<kNN, F, H, F>)->Name("MatmulNN/f32_f16")->Apply(gemms);
BENCHMARK(Matmul<kNT, B, B, B>)->Name("MatmulNT/bf16")->Apply(gemms);
BENCHMARK(Matmul<kNN, B, B, B>)->Name("MatmulNN/bf16")->Apply(gemms);

// Gradients of LoRA factors: dA(r,in) and dB(out,r) over T tokens.
template <DType A, DType X>
void MatmulTN(benchmark::State& state) {
  const int64_t m = state.range(0), n = state.range(1), t = state.range(2);
  const Data a(t, m, A), b(t, n, X), y(m, n, F);
  report(state, 2.0 * double(m * n * t), sgemm_rate(m, n, t),
         [&] { matmul_tn(stream(), y, a, b, 1, 1); });
}
void factor_gradients(benchmark::internal::Benchmark* b) {
  b->ArgNames({"m", "n", "t"})->Args({8, 576, 1024})->Args({576, 8, 1024})->Args({64, 576, 1024});
}
BENCHMARK(MatmulTN<F, F>)->Name("MatmulTN/f32")->Apply(factor_gradients);
BENCHMARK(MatmulTN<F, B>)->Name("MatmulTN/f32_bf16")->Apply(factor_gradients);
BENCHMARK(MatmulTN<B, B>)->Name("MatmulTN/bf16")->Apply(factor_gradients);

// GEMMs with A under dropout. What they are held against is not a roof but two kernels: dropout()
// to memory and a GEMM.
enum class LoraDropout { FORWARD, WGRAD, DGRAD };
template <LoraDropout Which, DType T>
void LoraDropoutGemm(benchmark::State& state) {
  const int64_t t = state.range(0), r = state.range(1), k = state.range(2);
  const Data x(t, k, T), dropped(t, k, T), a(r, k, F), u(t, r, F);
  std::vector<uint64_t> keys(static_cast<size_t>(t));
  for (size_t i = 0; i < keys.size(); ++i) keys[i] = i;
  const DropoutMask mask{1, 2, keys.data(), 0, 0.1f};
  const auto drop = [&](Matrix to, ConstMatrix from, bool accumulate) {
    dropout(stream(), to, from, mask.seed, mask.site, mask.row_keys, mask.first_col, mask.p,
            accumulate);
  };
  const double flops = 2.0 * double(t * r * k);
  const double apart = flops / fastest([&] {
                         if (Which == LoraDropout::DGRAD) {
                           matmul_nn(stream(), dropped, u, a);
                           return drop(x, dropped, true);
                         }
                         drop(dropped, x, false);
                         if (Which == LoraDropout::FORWARD) matmul_nt(stream(), u, dropped, a);
                         if (Which == LoraDropout::WGRAD) matmul_tn(stream(), a, u, dropped, 1, 1);
                       });
  report(state, flops, apart, [&] {
    if (Which == LoraDropout::FORWARD) lora_dropout_forward(stream(), u, x, a, mask);
    if (Which == LoraDropout::WGRAD) lora_dropout_wgrad(stream(), a, u, x, mask);
    if (Which == LoraDropout::DGRAD) lora_dropout_dgrad(stream(), x, u, a, mask);
  });
}
void factor_gemms(benchmark::internal::Benchmark* b) {
  b->ArgNames({"t", "r", "k"});
  for (int64_t r : {4, 8, 16, 64}) b->Args({1024, r, 576});
  b->Args({1024, 16, 4096})->Args({8, 16, 576});
}
BENCHMARK(LoraDropoutGemm<LoraDropout::FORWARD, F>)
    ->Name("LoraDropoutForward/f32")
    ->Apply(factor_gemms);
BENCHMARK(LoraDropoutGemm<LoraDropout::FORWARD, B>)
    ->Name("LoraDropoutForward/bf16")
    ->Apply(factor_gemms);
BENCHMARK(LoraDropoutGemm<LoraDropout::WGRAD, F>)
    ->Name("LoraDropoutWgrad/f32")
    ->Apply(factor_gemms);
BENCHMARK(LoraDropoutGemm<LoraDropout::WGRAD, B>)
    ->Name("LoraDropoutWgrad/bf16")
    ->Apply(factor_gemms);
BENCHMARK(LoraDropoutGemm<LoraDropout::DGRAD, F>)
    ->Name("LoraDropoutDgrad/f32")
    ->Apply(factor_gemms);
BENCHMARK(LoraDropoutGemm<LoraDropout::DGRAD, B>)
    ->Name("LoraDropoutDgrad/bf16")
    ->Apply(factor_gemms);

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
    // Query-key pairs, times D multiply-adds, for one of the GEMMs.
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
// A sliding window, as in Mistral and Gemma: the work grows with the window and not with T.
template <bool Backward>
void AttentionWindow(benchmark::State& state) {
  const int64_t t = state.range(0), window = state.range(1);
  AttentionData a(1, t, 9, 3, 64, F);
  a.shape.window = window;
  const double pairs = double(t) * double(window) - 0.5 * double(window) * double(window - 1);
  const double flops = 2.0 * 9 * 64 * pairs;
  const auto forward = [&] {
    attention_forward(stream(), a.o, a.lse, a.q, a.k, a.v, {a.q_offsets, a.kv_offsets}, a.shape);
  };
  if (!Backward) return report(state, 2 * flops, best_sgemm_rate(), forward);
  forward();
  report(state, 5 * flops, best_sgemm_rate(), [&] {
    attention_backward(stream(), a.dq, a.dk, a.dv, a.g, a.q, a.k, a.v, a.o, a.lse,
                       {a.q_offsets, a.kv_offsets}, a.shape);
  });
}
BENCHMARK(AttentionWindow<false>)->Name("AttentionForwardWindow")->Args({4096, 512});
BENCHMARK(AttentionWindow<true>)->Name("AttentionBackwardWindow")->Args({4096, 512});

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

}  // namespace
}  // namespace lorashard
