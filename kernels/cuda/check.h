// Calls into the CUDA libraries, checked. A failing call ends the run (status 3) with an error that
// names the call, the device and the library's own text.
#pragma once

#include <cuda_runtime_api.h>

#include <string>
#include <string_view>

#include "configs/error.h"

namespace lorashard::cuda {

// "CUDA device N": the device that this thread's calls go to.
inline std::string where() {
  int device = -1;
  if (cudaGetDevice(&device) != cudaSuccess || device < 0) return "CUDA";
  return "CUDA device " + std::to_string(device);
}

// `call` is the text of the call; its arguments are left out.
[[noreturn]] inline void fail_call(std::string_view call, const std::string& text) {
  fail_run(where(), std::string(call.substr(0, call.find('('))) + " failed: " + text);
}

inline void check(cudaError_t status, const char* call) {
  if (status != cudaSuccess)
    fail_call(call,
              std::string(cudaGetErrorString(status)) + " (" + cudaGetErrorName(status) + ")");
}

}  // namespace lorashard::cuda

#define LORASHARD_CUDA_CHECK(call) ::lorashard::cuda::check((call), #call)
