// Several adapters of one base as one, as PEFT's add_weighted_adapter forms it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/adapter.h"

namespace lorashard {

// How A and B of the adapters become one A and one B. Every A and B counts with the root of weight
// x scaling, A with its sign too, but for Cat. The sum of the updates themselves is Cat alone.
enum class Combination : uint8_t {
  Linear,          // the weighted sums of all A, and of all B
  Cat,             // A one above the other, B one beside the other: ranks add up; exact
  Ties,            // Yadav et al. 2023: keep the largest, elect signs, mean of those that agree
  DareLinear,      // Yu et al. 2024: drop at random and rescale, then Linear
  DareTies,        // the same, then signs and means as Ties
  MagnitudePrune,  // keep the largest, then Linear
};
enum class MajoritySign : uint8_t { Total, Frequency };  // by the sum of values, or of signs

struct CombineOptions {
  Combination method = Combination::Linear;
  std::vector<double> weights;  // one for each adapter; may be negative
  double density = 1;           // share of values kept, 0 to 1; not of Linear and Cat
  MajoritySign majority = MajoritySign::Total;
  uint64_t seed = 0;  // of DARE: what is kept is a function of seed, adapter, tensor and element
};

// A module has factors where any of the adapters has. Its scaling is 1. `names` of the adapters,
// for errors (status 2): DoRA, trained biases, another base; ranks that differ where the method
// needs them equal. `modules`: those of the base.
Adapter combine_adapters(const std::vector<Adapter>& adapters,
                         const std::vector<std::string>& names, const CombineOptions& options,
                         const std::vector<LinearModule>& modules);

}  // namespace lorashard
