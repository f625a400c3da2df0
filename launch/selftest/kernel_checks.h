// The self-test's checks of kernels/*.h: each kernel on a few shapes, whole and ragged, next to its
// definition in double precision.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kernels/stream.h"
#include "kernels/tensor.h"
#include "launch/selftest/compare.h"

namespace lorashard::selftest {

struct KernelCheck {
  std::string name;
  DType type = DType::F32;  // of the activations
  double tolerance = 0;     // of largest_error()
  // Runs the kernel on the stream; its results beside the definition's.
  std::function<std::vector<Part>(Stream&)> run;
};

std::vector<KernelCheck> kernel_checks();

// Parts of it, one source file each.
void add_row_checks(std::vector<KernelCheck>& checks);
void add_norm_checks(std::vector<KernelCheck>& checks);
void add_gemm_checks(std::vector<KernelCheck>& checks);
void add_attention_checks(std::vector<KernelCheck>& checks);
void add_loss_checks(std::vector<KernelCheck>& checks);

// Tolerance of results that are formed in fp32 and rounded once to `type`.
inline double rounded_once(DType type) { return type == DType::BF16 ? 0x1p-8 : 2e-6; }

}  // namespace lorashard::selftest
