// oneDNN's own rate on a model's GEMMs: the roof that step_bench.py holds a whole step against.
//   onednn_rate --threads T --rows M --type f32|bf16 N,K [N,K]...
// For each weight (N,K) the forward GEMM y(M,N) = x(M,K) w(N,K)^T and the input gradient
// dx(M,K) = dy(M,N) w(N,K), each the fastest of several calls. One JSON object a GEMM:
//   {"gemm":"forward","n":576,"k":576,"seconds":0.0051,"gflops":133.1,"path":"sgemm"}
// fp32 takes the faster of dnnl_sgemm and the matmul primitive. bf16 is the primitive alone, with
// fp32 accumulation; exit status 4 if the processor has no bf16 units, where oneDNN emulates it.
// Exit status 2: wrong usage.
#include <omp.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dnnl.hpp>
#include <string>
#include <vector>

namespace {

using Type = dnnl::memory::data_type;
using dnnl::memory;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Seconds of the fastest call within about a second, at least five calls after a first one.
template <class Call>
double fastest(const Call& call) {
  call();
  double best = 1e9, spent = 0;
  for (int i = 0; i < 5 || (spent < 1 && i < 200); ++i) {
    const double begin = now();
    call();
    const double t = now() - begin;
    best = t < best ? t : best, spent += t;
  }
  return best;
}

// Values around 1, so that no GEMM meets denormals.
std::vector<char> filled(int64_t values, Type type) {
  const size_t width = type == Type::f32 ? 4 : 2;
  std::vector<char> bytes(size_t(values) * width);
  for (int64_t i = 0; i < values; ++i) {
    const float x = 0.5f + float(i % 17) / 16.0f;
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if (width == 2) bits >>= 16;  // bf16 is the upper half
    std::memcpy(bytes.data() + size_t(i) * width, &bits, width);
  }
  return bytes;
}

// y(rows,cols) = a(rows,inner) b(inner,cols); b is stored (cols,inner) if b_transposed.
double primitive_seconds(int64_t rows, int64_t cols, int64_t inner, bool b_transposed, Type type,
                         const std::vector<char>& a, const std::vector<char>& b,
                         std::vector<char>& y) {
  static dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  static dnnl::stream queue(engine);
  const memory::desc da({rows, inner}, type, memory::dims{inner, 1});
  const memory::desc db({inner, cols}, type,
                        b_transposed ? memory::dims{1, inner} : memory::dims{cols, 1});
  const memory::desc dy({rows, cols}, type, memory::dims{cols, 1});
#if DNNL_VERSION_MAJOR >= 3
  const dnnl::matmul gemm(dnnl::matmul::primitive_desc(engine, da, db, dy));
#else
  const dnnl::matmul gemm(dnnl::matmul::primitive_desc(dnnl::matmul::desc(da, db, dy), engine));
#endif
  const memory ma(da, engine, const_cast<char*>(a.data()));
  const memory mb(db, engine, const_cast<char*>(b.data()));
  const memory my(dy, engine, y.data());
  return fastest([&] {
    gemm.execute(queue, {{DNNL_ARG_SRC, ma}, {DNNL_ARG_WEIGHTS, mb}, {DNNL_ARG_DST, my}});
    queue.wait();
  });
}

void measure(const char* name, int64_t m, int64_t n, int64_t k, bool forward, Type type) {
  const int64_t cols = forward ? n : k, inner = forward ? k : n;
  const std::vector<char> a = filled(m * inner, type), b = filled(n * k, type);
  std::vector<char> y = filled(m * cols, type);
  double seconds = primitive_seconds(m, cols, inner, forward, type, a, b, y);
  const char* path = "primitive";
  if (type == Type::f32) {
    const auto floats = [](const std::vector<char>& x) {
      return reinterpret_cast<const float*>(x.data());
    };
    const double sgemm = fastest([&] {
      dnnl_sgemm('N', forward ? 'T' : 'N', m, cols, inner, 1, floats(a), inner, floats(b), k, 0,
                 reinterpret_cast<float*>(y.data()), cols);
    });
    if (sgemm < seconds) seconds = sgemm, path = "sgemm";
  }
  std::printf(
      "{\"gemm\":\"%s\",\"n\":%lld,\"k\":%lld,\"seconds\":%.9f,\"gflops\":%.2f,"
      "\"path\":\"%s\"}\n",
      name, (long long)n, (long long)k, seconds, 2e-9 * double(m) * double(n) * double(k) / seconds,
      path);
  std::fflush(stdout);
}

[[noreturn]] void usage() {
  std::fprintf(stderr, "usage: onednn_rate --threads T --rows M --type f32|bf16 N,K [N,K]...\n");
  std::exit(2);
}

}  // namespace

int main(int argc, char** argv) {
  long long threads = 0, rows = 0;
  Type type = Type::undef;
  std::vector<std::pair<long long, long long>> weights;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    long long n = 0, k = 0;
    char rest;
    if (word == "--threads" && i + 1 < argc) {
      threads = std::atoll(argv[++i]);
    } else if (word == "--rows" && i + 1 < argc) {
      rows = std::atoll(argv[++i]);
    } else if (word == "--type" && i + 1 < argc) {
      const std::string t = argv[++i];
      type = t == "f32" ? Type::f32 : t == "bf16" ? Type::bf16 : Type::undef;
    } else if (std::sscanf(argv[i], "%lld,%lld%c", &n, &k, &rest) == 2 && n > 0 && k > 0) {
      weights.emplace_back(n, k);
    } else {
      usage();
    }
  }
  if (threads < 1 || rows < 1 || type == Type::undef || weights.empty()) usage();
  if (type == Type::bf16 && (dnnl_get_effective_cpu_isa() & dnnl_cpu_isa_avx512_core_bf16) !=
                                dnnl_cpu_isa_avx512_core_bf16) {
    std::fprintf(stderr, "onednn_rate: this processor has no bf16 units\n");
    return 4;
  }
  omp_set_num_threads(int(threads));
  for (const auto& [n, k] : weights) {
    measure("forward", rows, n, k, true, type);
    measure("input gradient", rows, n, k, false, type);
  }
}
