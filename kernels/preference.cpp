#include "kernels/preference.h"

#include <algorithm>
#include <cmath>

#include "kernels/cuda/dispatch.h"
#include "kernels/profile.h"

namespace lorashard {

void sequence_logps([[maybe_unused]] Stream& stream, double* logps, const double* losses,
                    const int32_t* rows, int64_t sequences) {
  if (stream.record("sequence_logps", {double(sequences) * sizeof(double)})) return;
  LORASHARD_RETURN_ON_CUDA(stream, sequence_logps(stream, logps, losses, rows, sequences));
  const ProfileSpan span("kernel", "sequence_logps");
  for (int64_t s = 0; s < sequences; ++s) {
    double sum = 0;
    for (int32_t r = rows[s]; r < rows[s + 1]; ++r) sum += losses[r];
    logps[s] = -sum;
  }
}

void preference_loss([[maybe_unused]] Stream& stream, float* factors, LossTotals* totals,
                     const double* policy, const double* reference, const int32_t* rows,
                     int64_t pairs, double beta) {
  if (stream.record("preference_loss", {double(4 * pairs) * sizeof(double)})) return;
  LORASHARD_RETURN_ON_CUDA(
      stream, preference_loss(stream, factors, totals, policy, reference, rows, pairs, beta));
  const ProfileSpan span("kernel", "preference_loss");
  LossTotals sum;
  for (int64_t p = 0; p < pairs; ++p) {
    const int64_t c = 2 * p, r = c + 1;
    const double chosen = beta * (policy[c] - reference[c]);
    const double rejected = beta * (policy[r] - reference[r]);
    const double margin = chosen - rejected, small = std::exp(-std::fabs(margin));
    sum.loss += std::log1p(small) + std::max(-margin, 0.0);
    sum.pairs.rewards_chosen += chosen;
    sum.pairs.rewards_rejected += rejected;
    sum.pairs.correct += chosen > rejected;
    sum.pairs.logps_chosen += policy[c];
    sum.pairs.logps_rejected += policy[r];
    if (!factors) continue;
    const double sigmoid = (margin > 0 ? small : 1) / (1 + small);  // of -margin
    std::fill(factors + rows[c], factors + rows[c + 1], float(beta * sigmoid));
    std::fill(factors + rows[r], factors + rows[r + 1], float(-beta * sigmoid));
  }
  totals->loss += sum.loss;
  totals->pairs.rewards_chosen += sum.pairs.rewards_chosen;
  totals->pairs.rewards_rejected += sum.pairs.rewards_rejected;
  totals->pairs.correct += sum.pairs.correct;
  totals->pairs.logps_chosen += sum.pairs.logps_chosen;
  totals->pairs.logps_rejected += sum.pairs.logps_rejected;
}

}  // namespace lorashard
