// How a kernel's public function hands over to its CUDA twin, without a test in callers and without
// a stub per function in builds that have no CUDA.
#pragma once

#if LORASHARD_CUDA
#include "kernels/cuda/kernels.h"
// Returns cuda::CALL if the stream is a CUDA stream; nothing is done while scratch is reserved
// (Stream::reserve_for).
#define LORASHARD_ON_CUDA(stream, call)                 \
  if ((stream).backend() == ::lorashard::Backend::CUDA) \
  return (stream).reserving() ? decltype(::lorashard::cuda::call)() : ::lorashard::cuda::call
// The same for functions that are called meanwhile too: those that take scratch, which then do no
// more than that.
#define LORASHARD_TAKES_SCRATCH_ON_CUDA(stream, call) \
  if ((stream).backend() == ::lorashard::Backend::CUDA) return ::lorashard::cuda::call
#else
#define LORASHARD_ON_CUDA(stream, call) static_cast<void>(0)
#define LORASHARD_TAKES_SCRATCH_ON_CUDA(stream, call) static_cast<void>(0)
#endif
