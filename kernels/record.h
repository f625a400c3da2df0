// Recording: a stream that notes which kernels it is asked for, with their work, and runs none. The
// cost model reads training's cost off the program itself, not off a copy of its loops.
//
// No memory is behind a recording stream's buffers and scratch: only shapes and types count.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "kernels/tensor.h"

namespace lorashard {

enum class Backend : uint8_t { CPU, CUDA };

// What a kernel does, at least: each operand moved once between memory and processor.
struct KernelWork {
  double bytes = 0;
  double flops = 0;         // of GEMMs and attention; other kernels are bound by memory
  DType type = DType::F32;  // in which the flops run: F32 or BF16
};

struct KernelCall {
  std::string kernel;  // as in profiles: "matmul_nt", "attention_forward", …
  std::string part;    // path of the spans around it (ProfileSpan::path)
  KernelWork work;
};

// What a recording stream noted. Outlives the stream.
struct KernelRecord {
  Backend backend = Backend::CPU;  // whose kernels: CUDA's GEMMs convert operands of another type
  std::vector<KernelCall> calls;
  size_t allocated = 0;  // bytes of all buffers so far
};

inline double traffic() { return 0; }
// Bytes of all elements.
template <class... More>
double traffic(const ConstMatrix& x, const More&... more) {
  return double(x.rows) * double(x.cols) * double(size_of(x.dtype)) + traffic(more...);
}

}  // namespace lorashard
