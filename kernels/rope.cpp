#include "kernels/rope.h"

#include <cassert>

#include "kernels/cpu/table.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/parallel_for.h"
#include "kernels/profile.h"

namespace lorashard {

void rope(Stream& stream, Matrix x, int64_t heads, const int32_t* positions, ConstMatrix cos_sin,
          bool inverse) {
  if (stream.record("rope", {traffic(x, x)})) return;
  LORASHARD_RETURN_ON_CUDA(stream, rope(stream, x, heads, positions, cos_sin, inverse));
  const ProfileSpan span("kernel", "rope");
  if (heads == 0) return;
  const CpuKernels& cpu = cpu_kernels();
  const int64_t d = x.cols / heads, r = cos_sin.cols / 2;
  assert(d * heads == x.cols && 2 * r <= d && cos_sin.dtype == DType::F32);
  parallel_for(stream, x.rows, 8192 / std::max<int64_t>(x.cols, 1) + 1,
               [&](int64_t begin, int64_t end) {
                 for (int64_t t = begin; t < end; ++t)
                   cpu.rope(x.at(t, 0), x.dtype, heads, d, r,
                            reinterpret_cast<const float*>(cos_sin.at(positions[t], 0)), inverse);
               });
}

}  // namespace lorashard
