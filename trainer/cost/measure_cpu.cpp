#include "trainer/cost/measure_cpu.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "kernels/elementwise.h"
#include "kernels/matmul.h"
#include "kernels/transfer.h"

namespace lorashard {
namespace {

// Seconds of the fastest of several calls, because others slow a call down but never speed it up.
template <class Call>
double best_seconds(const Call& call) {
  using Clock = std::chrono::steady_clock;
  double best = 1e9, spent = 0;
  call();  // pages touched, code generated
  for (int i = 0; i < 50 && (i < 3 || spent < 0.3); ++i) {
    const auto start = Clock::now();
    call();
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    best = std::min(best, seconds);
    spent += seconds;
  }
  return best;
}

double gemm_rate(Stream& stream, DType type) {
  // A layer's forward GEMM of middle size.
  constexpr int64_t m = 1024, n = 2048, k = 1024;
  const auto bytes = [&](int64_t elements) { return size_t(elements * size_of(type)); };
  const Buffer x(stream, bytes(m * k)), w(stream, bytes(n * k)), y(stream, bytes(m * n));
  const double seconds = best_seconds([&] {
    matmul_nt(stream, matrix(y.data(), m, n, type), matrix(x.data(), m, k, type),
              matrix(w.data(), n, k, type));
  });
  return 2.0 * m * n * k / seconds;
}

double memory_rate(int threads) {
  Stream stream(threads);
  constexpr int64_t rows = 4096, cols = 4096;  // 64 MiB each, beyond any cache's share
  const Buffer a(stream, size_t(rows * cols * 4)), b(stream, size_t(rows * cols * 4));
  const auto as_matrix = [&](const Buffer& x) { return matrix(x.data(), rows, cols, DType::F32); };
  fill_zero(stream, as_matrix(b));
  const double seconds =
      best_seconds([&] { add(stream, as_matrix(a), as_matrix(a), as_matrix(b)); });
  return 3.0 * rows * cols * 4 / seconds;
}

}  // namespace

Machine measure_cpu(Stream& stream, int host_ranks) {
  Machine m;
  m.name = "this computer";
  m.backend = Backend::CPU;
  m.f32_flops = gemm_rate(stream, DType::F32);
  m.bf16_flops = gemm_rate(stream, DType::BF16);
  m.memory_bandwidth = memory_rate(stream.threads() * host_ranks) / host_ranks;
  m.memory_bytes = double(sysconf(_SC_PHYS_PAGES)) * double(sysconf(_SC_PAGESIZE)) / host_ranks;
  // What runs took beyond the parts that are modelled (tests/bench/RESULTS.md, peak RSS): program,
  // libraries, GEMMs' tiles; and for several ranks MPI with its window for all-reduces.
  m.reserved_bytes = double((host_ranks > 1 ? 42 : 32) << 20);
  m.devices_per_node = host_ranks;
  // All-reduces in shared memory between two ranks on a Zen 3 core each (tests/bench/RESULTS.md:
  // 1024x576 fp32 in 172 us, 64 B in 0.2 us); between hosts 10 Gb/s Ethernet.
  m.inside = {13.7e9, 1e-7};
  m.between = {1.25e9, 5e-5};
  m.call_seconds = 2e-6;
  // Shares of the measured rates (RESULTS.md, "Kernels"): GEMMs 0.94-1.07, attention 0.60-0.80
  // forward and 0.55-0.80 backward.
  m.efficiency = {.gemms = 0.97,
                  .attention_forward = 0.70,
                  .attention_backward = 0.65,
                  .memory = 1,
                  .link = 1,
                  .overlap = 0};
  return m;
}

}  // namespace lorashard
