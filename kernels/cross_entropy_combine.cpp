#include <algorithm>
#include <cmath>

#include "kernels/cross_entropy.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/profile.h"

namespace lorashard {

void cross_entropy_combine([[maybe_unused]] Stream& stream, float* lse, double* loss,
                           ConstMatrix stats, int ranks, double* row_losses) {
  if (stream.record("cross_entropy_combine", {traffic(stats)})) return;
  LORASHARD_RETURN_ON_CUDA(stream,
                           cross_entropy_combine(stream, lse, loss, stats, ranks, row_losses));
  const ProfileSpan span("kernel", "cross_entropy_combine");
  const auto* s = static_cast<const float*>(stats.data);
  const int64_t rows = stats.rows / ranks;
  double rows_loss = 0;
  for (int64_t r = 0; r < rows; ++r) {
    const auto entry = [&](int rank) { return s + (rank * rows + r) * 3; };
    float maximum = entry(0)[0];
    for (int k = 1; k < ranks; ++k) maximum = std::max(maximum, entry(k)[0]);
    double sum = 0, label = 0;
    for (int k = 0; k < ranks; ++k) {
      sum += double(entry(k)[1]) * std::exp(double(entry(k)[0]) - maximum);
      label += entry(k)[2];
    }
    const double row_lse = maximum + std::log(sum);
    lse[r] = float(row_lse);
    rows_loss += row_lse - label;
    if (row_losses) row_losses[r] = row_lse - label;
  }
  if (loss) *loss += rows_loss;
}

}  // namespace lorashard
