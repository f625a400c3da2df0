#include "kernels/cpu/table.h"

namespace lorashard {

namespace baseline {
const CpuKernels& table();
}
#if defined(__x86_64__)
namespace avx2 {
const CpuKernels& table();
}
namespace avx512 {
const CpuKernels& table();
}
#endif

const CpuKernels* cpu_kernels(CpuTarget target) {
  switch (target) {
    case CpuTarget::BASELINE:
      return &baseline::table();
#if defined(__x86_64__)
    // libgcc's test includes the operating system's support for the registers.
    case CpuTarget::AVX2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                     __builtin_cpu_supports("f16c")
                 ? &avx2::table()
                 : nullptr;
    case CpuTarget::AVX512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")
                 ? &avx512::table()
                 : nullptr;
#endif
    default:
      return nullptr;
  }
}

const CpuKernels& cpu_kernels() {
  static const CpuKernels& best = []() -> const CpuKernels& {
    for (CpuTarget t : {CpuTarget::AVX512, CpuTarget::AVX2})
      if (const CpuKernels* k = cpu_kernels(t)) return *k;
    return *cpu_kernels(CpuTarget::BASELINE);
  }();
  return best;
}

}  // namespace lorashard
