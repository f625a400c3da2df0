// lse between our order, (Tq, heads), and cuDNN's, (batch, heads, length).
#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/portable.h"

namespace lorashard::cuda {
namespace {

constexpr int kThreads = 256;

// Consecutive threads: consecutive heads of a row.
template <bool kToHeads>
__global__ void __launch_bounds__(kThreads)
    reorder_lse(Rows<float> rows, float* by_head, LseOrder order) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= order.batch * order.heads * order.length) return;
  const int64_t row = i / order.heads, head = i % order.heads;
  const int64_t sequence = row / order.length, position = row % order.length;
  float& other = by_head[(sequence * order.heads + head) * order.length + position];
  if (kToHeads)
    other = *rows.at(row, head);
  else
    *rows.at(row, head) = other;
}

template <bool kToHeads>
void reorder(cudaStream_t stream, Rows<float> rows, float* by_head, const LseOrder& order) {
  const int64_t n = order.batch * order.heads * order.length;
  if (n == 0) return;
  LORASHARD_CUDA_CHECK(launch(reorder_lse<kToHeads>, dim3(unsigned((n + kThreads - 1) / kThreads)),
                              dim3(kThreads), 0, stream, rows, by_head, order));
}

}  // namespace

void lse_to_heads(cudaStream_t stream, float* by_head, Rows<const float> rows,
                  const LseOrder& order) {
  reorder<true>(stream, {const_cast<float*>(rows.data), rows.ld}, by_head, order);
}

void lse_from_heads(cudaStream_t stream, Rows<float> rows, const float* by_head,
                    const LseOrder& order) {
  reorder<false>(stream, rows, const_cast<float*>(by_head), order);
}

}  // namespace lorashard::cuda
