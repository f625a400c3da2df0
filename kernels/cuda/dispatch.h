// How a kernel's public function hands over to its CUDA twin, without a test in callers and without
// a stub per function in builds that have no CUDA.
#pragma once

#if LORASHARD_CUDA
#include "kernels/cuda/kernels.h"
// Returns cuda::CALL if the stream is a CUDA stream.
#define LORASHARD_ON_CUDA(stream, call) \
  if ((stream).backend() == ::lorashard::Backend::CUDA) return ::lorashard::cuda::call
#else
#define LORASHARD_ON_CUDA(stream, call) static_cast<void>(0)
#endif
