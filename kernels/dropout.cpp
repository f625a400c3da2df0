#include "kernels/dropout.h"

#include <cmath>

#include "kernels/cpu/table.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/parallel_for.h"
#include "kernels/profile.h"

namespace lorashard {

void dropout(Stream& stream, Matrix y, ConstMatrix x, uint64_t seed, uint32_t site,
             const uint64_t* row_keys, int64_t first_col, float p, bool accumulate) {
  if (stream.record("dropout", {traffic(y, x) + (accumulate ? traffic(y) : 0)})) return;
  LORASHARD_RETURN_ON_CUDA(stream,
                           dropout(stream, y, x, seed, site, row_keys, first_col, p, accumulate));
  const ProfileSpan span("kernel", "dropout");
  const CpuKernels& cpu = cpu_kernels();
  // uniform01(word) >= p in integers: uniform01 is (word >> 8) / 2^24.
  const uint32_t threshold = uint32_t(std::ceil(double(p) * 0x1p24));
  const float factor = float(1 / (1 - double(p)));
  parallel_for(stream, x.rows, 4096 / std::max<int64_t>(x.cols, 1) + 1,
               [&](int64_t begin, int64_t end) {
                 for (int64_t t = begin; t < end; ++t)
                   cpu.dropout(y.at(t, 0), y.dtype, x.at(t, 0), x.dtype, seed, site, row_keys[t],
                               first_col, x.cols, threshold, factor, accumulate);
               });
}

}  // namespace lorashard
