#include "launch/selftest/timings.h"

#include <fmt/format.h>

#include <chrono>

#include "kernels/elementwise.h"
#include "kernels/matmul.h"
#include "launch/selftest/operand.h"
#include "trainer/cost/machine.h"

namespace lorashard::selftest {
namespace {

// Seconds of one call, of many that follow one another; the first ones are not counted.
template <class F>
double seconds_of(Stream& stream, const F& call) {
  constexpr int kWarm = 3, kCalls = 20;
  for (int i = 0; i < kWarm; ++i) call();
  stream.synchronize();
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < kCalls; ++i) call();
  stream.synchronize();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / kCalls;
}

// Device memory that counts as a matrix of BF16 zeros.
struct Zeros {
  Zeros(Stream& stream, int64_t rows, int64_t cols)
      : memory(stream, size_t(rows * cols * 2)),
        matrix(lorashard::matrix(memory.data(), rows, cols, DType::BF16)) {}
  Buffer memory;
  Matrix matrix;
};

}  // namespace

const Machine* data_sheet(const std::string& device_name) {
  // As the driver writes them: "NVIDIA H100 80GB HBM3" is the SXM form, "NVIDIA H100 PCIe" and
  // "NVIDIA H100 NVL" are slower ones.
  const auto has = [&](const char* part) { return device_name.find(part) != std::string::npos; };
  if (has("PCIe") || has("NVL")) return nullptr;
  if (has("H100") && has("HBM3")) return find_machine("h100-sxm");
  if (has("H200")) return find_machine("h200-sxm");
  if (has("B200") && !has("GB200")) return find_machine("b200");
  return nullptr;
}

std::vector<std::string> timings(Stream& stream, const AttentionShape& shape, const Machine* peak) {
  const auto line = [&](const char* what, double seconds, double work, double Machine::*rate,
                        const char* unit) {
    std::string text = fmt::format("TIME {:<28} {:.3f} ms, {:.1f} {}/s", what, seconds * 1e3,
                                   work / seconds / 1e12, unit);
    if (peak) {
      text += fmt::format(", {:.0f} % of the {:.1f} of {}", 100 * work / seconds / (peak->*rate),
                          peak->*rate / 1e12, peak->name);
    }
    return text;
  };
  std::vector<std::string> lines;
  {
    constexpr int64_t kM = 8192, kN = 8192, kK = 8192;
    Zeros y(stream, kM, kN);
    // Random values: zeros need less power, and run faster.
    Operand x(stream, kM, kK, DType::BF16, 1), w(stream, kN, kK, DType::BF16, 2);
    const double t = seconds_of(stream, [&] { matmul_nt(stream, y.matrix, x, w); });
    lines.push_back(
        line("bf16 GEMM, 8192 cubed", t, 2.0 * kM * kN * kK, &Machine::bf16_flops, "TFLOP"));
  }
  {
    constexpr int64_t kLength = 4096;
    const int64_t wide = shape.heads * shape.head_dim, narrow = shape.kv_heads * shape.head_dim;
    Operand q(stream, kLength, wide, DType::BF16, 1), k(stream, kLength, narrow, DType::BF16, 2),
        v(stream, kLength, narrow, DType::BF16, 3);
    Zeros o(stream, kLength, wide);
    Buffer lse(stream, size_t(kLength * shape.heads) * sizeof(float));
    Numbers<int32_t> offsets(stream, {0, int32_t(kLength)});
    const Sequences one{offsets.host(), offsets.host(), offsets.device(), offsets.device()};
    const double t = seconds_of(stream, [&] {
      attention_forward(stream, o.matrix, matrix(lse.data(), kLength, shape.heads, DType::F32), q,
                        k, v, one, shape);
    });
    // Two GEMMs over half of the square.
    const double flops = 4.0 * double(wide) * kLength * kLength / 2;
    lines.push_back(line("bf16 attention, 4096 tokens", t, flops, &Machine::bf16_flops, "TFLOP"));
  }
  {
    constexpr int64_t kRows = 16384, kCols = 16384;
    Zeros from(stream, kRows, kCols), to(stream, kRows, kCols);
    const double t = seconds_of(stream, [&] { convert(stream, to.matrix, from.matrix); });
    lines.push_back(
        line("copy of 512 MiB", t, 2.0 * 2 * kRows * kCols, &Machine::memory_bandwidth, "TB"));
  }
  return lines;
}

}  // namespace lorashard::selftest
