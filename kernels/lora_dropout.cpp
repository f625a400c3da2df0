#include "kernels/lora_dropout.h"

#include <cassert>
#include <cmath>

#include "kernels/cpu/table.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/parallel_for.h"
#include "kernels/profile.h"

namespace lorashard {
namespace {

// Rows of a block: whole register tiles of every target.
constexpr int64_t kRows = 24;
constexpr int64_t kMostColumns = 512;
// Floats of a block of A that every row of x meets, in the inner cache or close to it.
constexpr int64_t kFactorFloats = 16384;

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

double flops(int64_t t, int64_t r, int64_t k) { return 2.0 * double(t) * double(r) * double(k); }

const float* floats(ConstMatrix m, int64_t i, int64_t j) {
  return reinterpret_cast<const float*>(m.at(i, j));
}
float* floats(Matrix m, int64_t i, int64_t j) { return reinterpret_cast<float*>(m.at(i, j)); }

// y(n,m) = (or += when accumulate) dropout(x)(n,m) for rows row.. and columns col.. of the mask.
void dropout_block(const DropoutMask& mask, Matrix y, ConstMatrix x, int64_t row, int64_t col,
                   bool accumulate) {
  // Threshold and factor are those of kernels/dropout.cpp.
  const uint32_t threshold = uint32_t(std::ceil(double(mask.p) * 0x1p24));
  const float factor = float(1 / (1 - double(mask.p)));
  const CpuKernels& cpu = cpu_kernels();
  for (int64_t i = 0; i < x.rows; ++i)
    cpu.dropout(y.at(i, 0), y.dtype, x.at(i, 0), x.dtype, mask.seed, mask.site,
                mask.row_keys[row + i], mask.first_col + col, x.cols, threshold, factor,
                accumulate);
}

// Columns of a block where r rows of A meet it; at least one.
int64_t block_columns(int64_t r, int64_t k) {
  return std::min(
      {std::max<int64_t>(k, 1), kMostColumns, std::max<int64_t>(kFactorFloats / r / 16 * 16, 64)});
}

}  // namespace

void lora_dropout_forward(Stream& stream, Matrix u, ConstMatrix x, ConstMatrix a,
                          const DropoutMask& mask) {
  const int64_t rows = x.rows, k = x.cols, r = a.rows;
  assert(u.rows == rows && u.cols == r && a.cols == k);
  if (stream.record("lora_dropout_forward", {traffic(u, x, a), flops(rows, r, k), x.dtype})) return;
  const ProfileSpan span("kernel", "lora_dropout_forward", flops(rows, r, k));
  LORASHARD_RETURN_ON_CUDA_WITH_SCRATCH(stream, lora_dropout_forward(stream, u, x, a, mask));
  if (rows == 0 || r == 0) return;
  const CpuKernels& cpu = cpu_kernels();
  const int64_t columns = block_columns(r, k), block = kRows * kMostColumns;
  auto* a_t = static_cast<float*>(
      stream.scratch(ScratchSlot::LoraDropout,
                     size_t(round_up(k * r, 16) + block * stream.threads()) * sizeof(float)));
  float* const blocks = a_t + round_up(k * r, 16);
  parallel_for(stream, k, 16384 / r + 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c)
      for (int64_t j = 0; j < r; ++j) a_t[c * r + j] = *floats(a, j, c);
  });
  parallel_tasks(stream, (rows + kRows - 1) / kRows, [&](int64_t task, int thread) {
    const int64_t row = task * kRows, n = std::min(kRows, rows - row);
    for (int64_t c = 0; c == 0 || c < k; c += columns) {
      const int64_t m = std::min(columns, k - c);
      const Matrix kept = matrix(blocks + thread * block, n, m, DType::F32);
      dropout_block(mask, kept, x.block(row, n, c, m), row, c, false);
      cpu.block_gemm(floats(u, row, 0), u.ld, floats(kept, 0, 0), m, false, a_t + c * r, r, n, r, m,
                     c > 0);
    }
  });
}

void lora_dropout_wgrad(Stream& stream, Matrix da, ConstMatrix t, ConstMatrix x,
                        const DropoutMask& mask) {
  const int64_t rows = x.rows, k = x.cols, r = t.cols;
  assert(t.rows == rows && da.rows == r && da.cols == k);
  if (stream.record("lora_dropout_wgrad", {traffic(da, da, t, x), flops(rows, r, k), x.dtype}))
    return;
  const ProfileSpan span("kernel", "lora_dropout_wgrad", flops(rows, r, k));
  LORASHARD_RETURN_ON_CUDA_WITH_SCRATCH(stream, lora_dropout_wgrad(stream, da, t, x, mask));
  if (rows == 0 || r == 0 || k == 0) return;
  const CpuKernels& cpu = cpu_kernels();
  // Tasks are stripes of columns. Each column is summed over the rows in order, kSummedRows at a
  // time, whatever the width.
  constexpr int64_t kSummedRows = 96, kStripe = 128;
  const int64_t each = (k + stream.threads() - 1) / stream.threads();
  const int64_t columns = std::min(kStripe, round_up(each, 32));
  const int64_t block = kSummedRows * columns;
  auto* blocks = static_cast<float*>(
      stream.scratch(ScratchSlot::LoraDropout, size_t(block * stream.threads()) * sizeof(float)));
  parallel_tasks(stream, (k + columns - 1) / columns, [&](int64_t task, int thread) {
    const int64_t c = task * columns, m = std::min(columns, k - c);
    for (int64_t row = 0; row < rows; row += kSummedRows) {
      const int64_t n = std::min(kSummedRows, rows - row);
      const Matrix kept = matrix(blocks + thread * block, n, m, DType::F32);
      dropout_block(mask, kept, x.block(row, n, c, m), row, c, false);
      cpu.block_gemm(floats(da, 0, c), da.ld, floats(t, row, 0), t.ld, true, floats(kept, 0, 0), m,
                     r, m, n, true);
    }
  });
}

void lora_dropout_dgrad(Stream& stream, Matrix dx, ConstMatrix t, ConstMatrix a,
                        const DropoutMask& mask) {
  const int64_t rows = dx.rows, k = dx.cols, r = t.cols;
  assert(t.rows == rows && a.rows == r && a.cols == k);
  if (stream.record("lora_dropout_dgrad", {traffic(dx, dx, t, a), flops(rows, r, k), dx.dtype}))
    return;
  const ProfileSpan span("kernel", "lora_dropout_dgrad", flops(rows, r, k));
  LORASHARD_RETURN_ON_CUDA(stream, lora_dropout_dgrad(stream, dx, t, a, mask));
  if (k == 0 || r == 0) return;
  const CpuKernels& cpu = cpu_kernels();
  const int64_t columns = block_columns(r, k), block = kRows * kMostColumns;
  auto* blocks = static_cast<float*>(
      stream.scratch(ScratchSlot::LoraDropout, size_t(block * stream.threads()) * sizeof(float)));
  parallel_tasks(stream, (rows + kRows - 1) / kRows, [&](int64_t task, int thread) {
    const int64_t row = task * kRows, n = std::min(kRows, rows - row);
    for (int64_t c = 0; c < k; c += columns) {
      const int64_t m = std::min(columns, k - c);
      const Matrix ta = matrix(blocks + thread * block, n, m, DType::F32);
      cpu.block_gemm(floats(ta, 0, 0), m, floats(t, row, 0), t.ld, false, floats(a, 0, c), a.ld, n,
                     m, r, false);
      dropout_block(mask, dx.block(row, n, c, m), ta, row, c, true);
    }
  });
}

}  // namespace lorashard
