#include "kernels/embedding.h"

#include <vector>

#include "kernels/cpu/table.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/parallel_for.h"
#include "kernels/profile.h"

namespace lorashard {

void embedding_forward(Stream& stream, Matrix y, const int32_t* ids, ConstMatrix table,
                       int64_t first_row, float factor) {
  if (stream.record("embedding_forward",
                    {traffic(y) + double(y.rows * table.cols * size_of(table.dtype))}))
    return;
  LORASHARD_RETURN_ON_CUDA(stream, embedding_forward(stream, y, ids, table, first_row, factor));
  const ProfileSpan span("kernel", "embedding_forward");
  const CpuKernels& cpu = cpu_kernels();
  parallel_for(stream, y.rows, 16384 / std::max<int64_t>(y.cols, 1) + 1,
               [&](int64_t begin, int64_t end) {
                 for (int64_t t = begin; t < end; ++t) {
                   const int64_t row = ids[t] - first_row;
                   if (row >= 0 && row < table.rows)
                     cpu.scale(y.at(t, 0), y.dtype, table.at(row, 0), table.dtype, factor, y.cols);
                   else
                     std::fill_n(y.at(t, 0), y.cols * size_of(y.dtype), 0);
                 }
               });
}

void embedding_backward(Stream& stream, Matrix d_table, const int32_t* ids, ConstMatrix dy,
                        int64_t first_row, float factor) {
  const ConstMatrix rows{nullptr, dy.rows, d_table.cols, d_table.cols, d_table.dtype};
  if (stream.record("embedding_backward", {traffic(dy, rows, rows)})) return;
  LORASHARD_RETURN_ON_CUDA(stream, embedding_backward(stream, d_table, ids, dy, first_row, factor));
  const ProfileSpan span("kernel", "embedding_backward");
  const CpuKernels& cpu = cpu_kernels();
  // Threads share out the columns, for any of them may find a token of any row.
  parallel_for(
      stream, dy.cols, 16384 / std::max<int64_t>(dy.rows, 1) + 16, [&](int64_t begin, int64_t end) {
        std::vector<float> x(size_t(end - begin));
        for (int64_t t = 0; t < dy.rows; ++t) {
          const int64_t row = ids[t] - first_row;
          if (row < 0 || row >= d_table.rows) continue;
          cpu.convert(x.data(), DType::F32, dy.at(t, begin), dy.dtype, end - begin);
          cpu.scale_add(d_table.at(row, begin), DType::F32, x.data(), factor, 1, end - begin);
        }
      });
}

}  // namespace lorashard
