#include "kernels/cross_entropy.h"

#include "kernels/cpu/table.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/float_types.h"
#include "kernels/parallel_for.h"
#include "kernels/profile.h"

namespace lorashard {

void cross_entropy_stats(Stream& stream, Matrix stats, ConstMatrix logits, const int32_t* labels,
                         int64_t first) {
  if (stream.record("cross_entropy_stats", {traffic(logits, stats)})) return;
  LORASHARD_RETURN_ON_CUDA(stream, cross_entropy_stats(stream, stats, logits, labels, first));
  const ProfileSpan span("kernel", "cross_entropy_stats");
  const CpuKernels& cpu = cpu_kernels();
  parallel_for(stream, logits.rows, 4096 / std::max<int64_t>(logits.cols, 1) + 1,
               [&](int64_t begin, int64_t end) {
                 for (int64_t r = begin; r < end; ++r) {
                   auto* out = reinterpret_cast<float*>(stats.at(r, 0));
                   cpu.row_max_sum(logits.at(r, 0), logits.dtype, logits.cols, &out[0], &out[1]);
                   const int64_t c = labels[r] - first;
                   const bool here = c >= 0 && c < logits.cols;
                   out[2] = here ? load_scalar(logits.at(r, 0), logits.dtype, c) : 0;
                 }
               });
}

void cross_entropy_gradient(Stream& stream, Matrix logits, const float* lse, const int32_t* labels,
                            int64_t first, float factor, const float* row_factors) {
  if (stream.record("cross_entropy_gradient", {traffic(logits, logits)})) return;
  LORASHARD_RETURN_ON_CUDA(
      stream, cross_entropy_gradient(stream, logits, lse, labels, first, factor, row_factors));
  const ProfileSpan span("kernel", "cross_entropy_gradient");
  const CpuKernels& cpu = cpu_kernels();
  parallel_for(stream, logits.rows, 4096 / std::max<int64_t>(logits.cols, 1) + 1,
               [&](int64_t begin, int64_t end) {
                 for (int64_t r = begin; r < end; ++r) {
                   // The label's column is formed from the logit itself, so that a bf16 store of
                   // the probability does not round twice.
                   const int64_t c = labels[r] - first;
                   const bool here = c >= 0 && c < logits.cols;
                   const float f = row_factors ? factor * row_factors[r] : factor;
                   float p = 0;
                   if (here) {
                     float logit = load_scalar(logits.at(r, 0), logits.dtype, c);
                     cpu.softmax_gradient(&logit, DType::F32, 1, lse[r], 1);
                     p = logit;
                   }
                   cpu.softmax_gradient(logits.at(r, 0), logits.dtype, logits.cols, lse[r], f);
                   if (here) store_scalar(logits.at(r, 0), logits.dtype, c, f * (p - 1));
                 }
               });
}

}  // namespace lorashard
