// For tests/cuda/kernel_table.sh: reads lines "ARCHITECTURE REGISTERS STATIC DYNAMIC THREADS"
// (shared memory in bytes) and answers each with the share of a multiprocessor's threads that can
// be resident, in percent, by the toolkit's own rules.
#include <cuda_occupancy.h>

#include <cstdio>

namespace {

// The data-centre processor of each architecture (CUDA C++ Programming Guide, table "Technical
// Specifications per Compute Capability"): A100, H100 and H200, B200.
cudaOccDeviceProp device(int architecture) {
  cudaOccDeviceProp p{};
  p.computeMajor = architecture / 10;
  p.computeMinor = architecture % 10;
  p.maxThreadsPerBlock = 1024;
  p.maxThreadsPerMultiprocessor = 2048;
  p.regsPerBlock = p.regsPerMultiprocessor = 65536;
  p.warpSize = 32;
  p.sharedMemPerBlock = 48 << 10;
  p.reservedSharedMemPerBlock = 1 << 10;
  p.sharedMemPerMultiprocessor = (architecture == 80 ? 164 : 228) << 10;
  p.sharedMemPerBlockOptin = p.sharedMemPerMultiprocessor - p.reservedSharedMemPerBlock;
  p.numSms = architecture == 80 ? 108 : architecture == 90 ? 132 : 148;
  return p;
}

}  // namespace

int main() {
  int architecture, registers, threads;
  unsigned long static_shared, dynamic_shared;
  while (std::scanf("%d %d %lu %lu %d", &architecture, &registers, &static_shared, &dynamic_shared,
                    &threads) == 5) {
    const cudaOccDeviceProp properties = device(architecture);
    cudaOccFuncAttributes attributes{};
    attributes.maxThreadsPerBlock = threads;
    attributes.numRegs = registers;
    attributes.sharedSizeBytes = static_shared;
    attributes.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    attributes.maxDynamicSharedSizeBytes = dynamic_shared;
    const cudaOccDeviceState state{};
    cudaOccResult result{};
    const cudaOccError error = cudaOccMaxActiveBlocksPerMultiprocessor(
        &result, &properties, &attributes, &state, threads, dynamic_shared);
    if (error != CUDA_OCC_SUCCESS) {
      std::fprintf(stderr, "occupancy: error %d for sm_%d\n", int(error), architecture);
      return 1;
    }
    std::printf("%d\n", 100 * result.activeBlocksPerMultiprocessor * threads /
                            properties.maxThreadsPerMultiprocessor);
  }
}
