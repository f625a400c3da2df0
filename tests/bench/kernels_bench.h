// What the benchmarks of kernels share. Every kernel's rate stands beside its roofline, measured in
// the same run: oneDNN's sgemm for GEMMs, a parallel copy for kernels bound by memory.
//
// Columns: rate in GFLOP/s or GB/s, roof in the same unit, share = rate / roof. Rates are those of
// the fastest iteration, because other programs slow a shared machine down but never speed it up. A
// kernel whose operands stay in a cache may be faster than the copy, which goes to memory.
// Threads: BENCH_THREADS, by default what the process may run on.
#pragma once

#include <benchmark/benchmark.h>
#include <dnnl.h>
#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <vector>

#include "kernels/elementwise.h"
#include "kernels/parallel_for.h"

namespace lorashard {
inline constexpr DType F = DType::F32, B = DType::BF16, H = DType::F16;

inline Stream& stream() {
  static Stream s(std::getenv("BENCH_THREADS") ? std::atoi(std::getenv("BENCH_THREADS")) : 0);
  return s;
}

// One thread is timed by its processor time, which other programs hardly disturb; several by the
// clock on the wall.
inline double now() {
  timespec t;
  clock_gettime(stream().threads() == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

inline double seconds(const auto& call) {
  const double begin = now();
  call();
  return now() - begin;
}

// Seconds of the fastest call within about a quarter of a second.
inline double fastest(const auto& call) {
  call();
  double best = 1e9, spent = 0;
  for (int i = 0; i < 5 || (spent < 0.25 && i < 10000); ++i) {
    const double t = seconds(call);
    best = std::min(best, t), spent += t;
  }
  return best;
}

// Memory filled with small values, so that no kernel meets denormals or pages not yet touched.
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
inline void report(benchmark::State& state, double work, double roof, const auto& call) {
  double best = 1e9;
  for (auto _ : state) best = std::min(best, seconds(call));
  state.counters["rate"] = work / best * 1e-9;
  state.counters["roof"] = roof * 1e-9;
  state.counters["share"] = work / best / roof;
}

// Flops per second of oneDNN's sgemm for y(m,n) = x(m,k) w(n,k)^T.
inline double sgemm_rate(int64_t m, int64_t n, int64_t k) {
  const Data x(m, k, F), w(n, k, F), y(m, n, F);
  omp_set_num_threads(stream().threads());
  return 2.0 * double(m * n * k) / fastest([&] {
           dnnl_sgemm('N', 'T', m, n, k, 1, x.floats(), k, w.floats(), k, 0, y.floats(), n);
         });
}

// The rate of attention's roof: a GEMM large enough for oneDNN's best.
inline double best_sgemm_rate() {
  static const double rate = sgemm_rate(1024, 576, 576);
  return rate;
}

// Bytes read and written per second by a parallel copy of 64 MiB.
inline double copy_rate() {
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

}  // namespace lorashard
