// Runs one kernel under ThreadSanitizer, each thread of it a thread in its eyes.
//   test_race missing | present: with the barrier that it needs missing or present
#include <cuda_runtime_api.h>

#include <cstdio>
#include <string_view>

#include "tests/cudasim/tests/kernels.h"

int main(int count, char** arguments) {
  if (count != 2) return 2;
  const bool missing = std::string_view(arguments[1]) == "missing";
  constexpr int kN = 256;
  cudaStream_t stream = nullptr;
  void* memory = nullptr;
  bool done = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess &&
              cudaMalloc(&memory, kN * sizeof(float)) == cudaSuccess;
  auto* y = static_cast<float*>(memory);
  const Kernel kernel = missing ? Kernel::MISSING_BARRIER : Kernel::WITH_BARRIER;
  done = done && run(kernel, y, nullptr, 0, kN, kN, stream) == cudaSuccess &&
         run(Kernel::SHUFFLES, y, nullptr, 0, kN, 32, stream) == cudaSuccess &&
         cudaStreamSynchronize(stream) == cudaSuccess;
  std::printf("%s\n", done ? "done" : "failed");
  return done ? 0 : 1;
}
