// How a kernel's public function dispatches to its CUDA implementation, without a test in callers
// and without a stub per function in builds that have no CUDA.
#pragma once

#if LORASHARD_CUDA
#include "kernels/cuda/kernels.h"
// Returns cuda::CALL if the stream is a CUDA stream; nothing is done while scratch is reserved
// (Stream::reserve_for).
#define LORASHARD_RETURN_ON_CUDA(stream, call)          \
  if ((stream).backend() == ::lorashard::Backend::CUDA) \
  return (stream).reserving() ? decltype(::lorashard::cuda::call)() : ::lorashard::cuda::call
// Returns cuda::CALL if the stream is a CUDA stream, also while scratch is reserved: for functions
// that take scratch, which then do no more than that.
#define LORASHARD_RETURN_ON_CUDA_WITH_SCRATCH(stream, call) \
  if ((stream).backend() == ::lorashard::Backend::CUDA) return ::lorashard::cuda::call
#else
#define LORASHARD_RETURN_ON_CUDA(stream, call) static_cast<void>(0)
#define LORASHARD_RETURN_ON_CUDA_WITH_SCRATCH(stream, call) static_cast<void>(0)
#endif
