#include "kernels/preference.h"

#include "kernels/cuda/check.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/portable.h"

namespace lorashard::cuda {
namespace {

constexpr int kThreads = 256;

// A block a sequence; each thread's rows in order, then the threads' sums in order.
__global__ void __launch_bounds__(kThreads)
    sequence_logps_kernel(double* logps, const double* losses, const int32_t* rows) {
  SHARED_ARRAY(double, sums, kThreads);
  const int64_t s = blockIdx.x;
  const int t = int(threadIdx.x);
  double sum = 0;
  for (int r = rows[s] + t; r < rows[s + 1]; r += kThreads) sum += losses[r];
  sums[t] = sum;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (t < half) sums[t] += sums[t + half];
    __syncthreads();
  }
  if (t == 0) logps[s] = -sums[0];
}

// One block: pairs are few. The totals are added in the pairs' order; the threads share the rows.
__global__ void __launch_bounds__(kThreads)
    preference_loss_kernel(float* factors, double* totals, const double* policy,
                           const double* reference, const int32_t* rows, int64_t pairs,
                           double beta) {
  const int t = int(threadIdx.x);
  double sums[kLossTotals] = {};
  for (int64_t p = 0; p < pairs; ++p) {
    const int64_t c = 2 * p, r = c + 1;
    const double chosen = beta * (policy[c] - reference[c]);
    const double rejected = beta * (policy[r] - reference[r]);
    const double margin = chosen - rejected, tail = exp(-fabs(margin));
    sums[0] += log1p(tail) + (margin < 0 ? -margin : 0.0);
    sums[1] += chosen;
    sums[2] += rejected;
    sums[3] += chosen > rejected ? 1.0 : 0.0;
    sums[4] += policy[c];
    sums[5] += policy[r];
    if (!factors) continue;
    const double factor = beta * (margin > 0 ? tail : 1.0) / (1 + tail);
    for (int i = rows[c] + t; i < rows[r + 1]; i += kThreads)
      factors[i] = float(i < rows[r] ? factor : -factor);
  }
  if (t > 0) return;
  for (int i = 0; i < kLossTotals; ++i) totals[i] += sums[i];
}

}  // namespace

void sequence_logps(Stream& stream, double* logps, const double* losses, const int32_t* rows,
                    int64_t sequences) {
  if (sequences == 0) return;
  LORASHARD_CUDA_CHECK(launch(sequence_logps_kernel, dim3(unsigned(sequences)), dim3(kThreads), 0,
                              stream_of(stream), logps, losses, rows));
}

void preference_loss(Stream& stream, float* factors, LossTotals* totals, const double* policy,
                     const double* reference, const int32_t* rows, int64_t pairs, double beta) {
  if (pairs == 0) return;
  LORASHARD_CUDA_CHECK(launch(preference_loss_kernel, dim3(1), dim3(kThreads), 0, stream_of(stream),
                              factors, &totals->loss, policy, reference, rows, pairs, beta));
}

}  // namespace lorashard::cuda
