// Devices that cuDNN makes plans for without having them: its JSON of device properties (cuDNN 9,
// CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR; all 23 fields are required).
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace lorashard {

struct DescribedDevice {
  const char* name;
  int compute_capability, multiprocessors, shared_bytes;
  int64_t l2_bytes, memory_bytes;

  std::string json() const {
    return nlohmann::json{{"cudaDeviceId", 0},
                          {"deviceName", name},
                          {"deviceVer", compute_capability * 10},
                          {"driverVer", 13000},
                          {"isTccDriver", 0},
                          {"l2CacheSize", l2_bytes},
                          {"maxBlockSize", {1024, 1024, 64}},
                          {"maxCtasPerSM", 32},
                          {"maxGridSize", {2147483647, 65535, 65535}},
                          {"maxRegistersPerSM", 65536},
                          {"maxSharedMemoryPerBlock", 49152},
                          {"maxSharedMemoryPerBlockOptin", shared_bytes},
                          {"maxThreadsPerBlock", 1024},
                          {"maxThreadsPerSM", 2048},
                          {"memClockRateKHz", 2619000},
                          {"multiProcessorCount", multiprocessors},
                          {"pciDeviceId", 0},
                          {"regsPerBlock", 65536},
                          {"reservedSharedMemoryPerBlock", 1024},
                          {"smClockRateKHz", 1980000},
                          {"supportCoopLaunch", 1},
                          {"totalGlobalMem", memory_bytes},
                          {"warpSize", 32}}
        .dump();
  }
};

inline constexpr DescribedDevice kA100{
    "NVIDIA A100-SXM4-80GB", 80, 108, 166912, 41943040, 85000000000};
inline constexpr DescribedDevice kH100{
    "NVIDIA H100 80GB HBM3", 90, 132, 232448, 52428800, 85000000000};
inline constexpr DescribedDevice kB200{"NVIDIA B200", 100, 148, 232448, 132644864, 190000000000};

}  // namespace lorashard
