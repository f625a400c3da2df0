// Routing of a mixture of experts: 1024 tokens, 8 of 64 experts each, rows of 512.
#include "kernels/routing.h"
#include "tests/bench/kernels_bench.h"

namespace lorashard {
namespace {

constexpr int64_t kTokens = 1024, kExperts = 64, kChoices = 8, kCols = 512;

struct Case {
  Data logits{kTokens, kExperts, F}, probabilities{kTokens, kExperts, F},
      weights{kTokens, kChoices, F}, integers{3 * kTokens + 16, kChoices, F};
  Matrix part(int64_t i, int64_t rows, int64_t cols) const {
    return matrix(integers.m.at(i * kTokens, 0), rows, cols, DType::I32);
  }
  Routing routing{probabilities,
                  weights,
                  part(0, kTokens, kChoices),
                  part(1, kTokens, kChoices),
                  part(2, kTokens, kChoices),
                  part(3, 1, kExperts + 1)};
  Case() { route_forward(stream(), routing, logits, true); }
};

void RouteForward(benchmark::State& state) {
  const Case c;
  report(state, 4.0 * kTokens * (2 * kExperts + 4 * kChoices), copy_rate(),
         [&] { route_forward(stream(), c.routing, c.logits, true); });
}
void RouteBackward(benchmark::State& state) {
  const Case c;
  const Data dw(kTokens, kChoices, F), d(kTokens, kExperts, F);
  report(state, 4.0 * kTokens * (2 * kExperts + kChoices), copy_rate(),
         [&] { route_backward(stream(), d, dw, c.routing, true); });
}
template <DType T>
void GatherChoices(benchmark::State& state) {
  const Case c;
  const Data x(kTokens, kCols, T), y(kTokens * kChoices, kCols, T);
  report(state, 2.0 * double(y.buffer.bytes()), copy_rate(),
         [&] { gather_choices(stream(), y, x, c.routing); });
}
template <DType T>
void SumChoices(benchmark::State& state) {
  const Case c;
  const Data x(kTokens * kChoices, kCols, T), y(kTokens, kCols, T);
  report(state, double(x.buffer.bytes() + y.buffer.bytes()), copy_rate(),
         [&] { sum_choices(stream(), y, x, c.routing, false); });
}
template <DType T>
void WeighChoices(benchmark::State& state) {
  const Case c;
  const Data x(kTokens * kChoices, kCols, T), y(kTokens * kChoices, kCols, T);
  report(state, 2.0 * double(x.buffer.bytes()), copy_rate(),
         [&] { weigh_choices(stream(), y, x, c.routing); });
}
template <DType T>
void WeighChoicesBackward(benchmark::State& state) {
  const Case c;
  const Data x(kTokens * kChoices, kCols, T), y(kTokens * kChoices, kCols, T);
  const Data dw(kTokens, kChoices, F);
  report(state, 3.0 * double(x.buffer.bytes()), copy_rate(),
         [&] { weigh_choices_backward(stream(), dw, y, y, x, c.routing); });
}

BENCHMARK(RouteForward);
BENCHMARK(RouteBackward);
BENCHMARK(GatherChoices<F>);
BENCHMARK(GatherChoices<B>);
BENCHMARK(SumChoices<F>);
BENCHMARK(SumChoices<B>);
BENCHMARK(WeighChoices<F>);
BENCHMARK(WeighChoices<B>);
BENCHMARK(WeighChoicesBackward<F>);
BENCHMARK(WeighChoicesBackward<B>);

}  // namespace
}  // namespace lorashard
