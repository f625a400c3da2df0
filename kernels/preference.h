// The loss of direct preference optimization (Rafailov et al. 2023, equation 7; TRL's loss_type
// "sigmoid"), from the losses of unmasked tokens. Sequences are pairs, chosen then rejected; the
// unmasked rows of sequence s are [rows[s], rows[s + 1]).
#pragma once

#include <cstdint>

#include "kernels/stream.h"

namespace lorashard {

// Sums over pairs. A reward is beta (log p - log p_ref).
struct PreferenceTotals {
  double rewards_chosen = 0, rewards_rejected = 0;
  double correct = 0;  // pairs whose chosen reward is the larger one
  double logps_chosen = 0, logps_rejected = 0;
};
// What a loss adds up to: six doubles, also on the device.
struct LossTotals {
  double loss = 0;         // over unmasked tokens, or over pairs
  PreferenceTotals pairs;  // of pairs only
};
inline constexpr int64_t kLossTotals = 6;
static_assert(sizeof(LossTotals) == kLossTotals * sizeof(double));

// logps(S) = log p of each sequence: minus the sum of its rows' losses.
void sequence_logps(Stream& stream, double* logps, const double* losses, const int32_t* rows,
                    int64_t sequences);

// *totals += those of P pairs, whose loss is -log sigmoid(margin), margin = chosen reward -
// rejected reward. policy(2P), reference(2P): sequence_logps. Unless null, factors of all unmasked
// rows = the derivative of the loss by the row's loss: beta sigmoid(-margin) of a chosen row, minus
// that of a rejected one.
void preference_loss(Stream& stream, float* factors, LossTotals* totals, const double* policy,
                     const double* reference, const int32_t* rows, int64_t pairs, double beta);

}  // namespace lorashard
