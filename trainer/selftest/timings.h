// How fast a real device is at a product, an attention and a copy, beside its data sheet.
#pragma once

#include <string>
#include <vector>

#include "kernels/attention.h"

namespace lorashard::selftest {

// This program was built with the simulator in place of the CUDA libraries.
bool devices_are_simulated();

// A line each. They judge nothing: which device it is, and what else it does, is not known here.
std::vector<std::string> timings(Stream& stream, const AttentionShape& shape);

}  // namespace lorashard::selftest
