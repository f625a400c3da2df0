// How fast a real device is at a GEMM, attention and a copy, beside its data sheet.
#pragma once

#include <string>
#include <vector>

#include "kernels/attention.h"
#include "trainer/cost/machine.h"

namespace lorashard::selftest {

// The data sheet of a device of this name (Stream's cuda_device_name), or null: its form decides
// the rates, so that an H100 of the PCIe form has none here.
const Machine* data_sheet(const std::string& device_name);

// A line each, beside the rates of `peak` unless it is null. They judge nothing: what else the
// device does is not known here.
std::vector<std::string> timings(Stream& stream, const AttentionShape& shape, const Machine* peak);

}  // namespace lorashard::selftest
