// Evaluation: the mean loss over all unmasked tokens of a file, or over all its pairs.
#pragma once

#include <functional>

#include "parallel/mesh.h"
#include "trainer/model/model.h"

namespace lorashard {

struct EvalSum {
  LossTotals totals = {};
  int64_t terms = 0;                    // that the loss is the mean of: unmasked tokens, or pairs
  int64_t unmasked = 0, sequences = 0;  // tokens that count; lines of the file
  int stop_signal = 0;                  // that ended it on some rank: there is no loss then
  double mean() const { return totals.loss / double(terms); }
};

// Over the whole data set, shared out over the data-parallel ranks. Error (status 2) if no token
// is unmasked. Given `stop_signal`, which returns SIGINT, SIGTERM or 0, it is asked before each
// micro-batch. Collective over mesh.world.
EvalSum evaluate_loss(Model& model, std::shared_ptr<const Dataset> data, const std::string& path,
                      int64_t micro_batch, const Mesh& mesh,
                      const std::function<int()>& stop_signal = {});

}  // namespace lorashard
