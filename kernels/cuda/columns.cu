#include "kernels/columns.h"

#include <algorithm>

#include "kernels/cuda/kernels.h"
#include "kernels/cuda/map_rows.h"

namespace lorashard::cuda {
namespace {

constexpr int kSumColumns = 32, kSumRows = 8;

// A block sums 32 columns; its eight warps take the rows in turn.
template <class T, bool Products>
__global__ void __launch_bounds__(kSumColumns* kSumRows)
    column_sums_kernel(float* sums, Input<T> x, Input<T> y, int64_t rows, int64_t cols) {
  SHARED_ARRAY(double, parts, kSumColumns* kSumRows);
  const int lane = int(threadIdx.x) % kSumColumns, warp = int(threadIdx.x) / kSumColumns;
  const int64_t col = int64_t{blockIdx.x} * kSumColumns + lane;
  double sum = 0;
  if (col < cols) {
#pragma unroll 1
    for (int64_t t = warp; t < rows; t += kSumRows) {
      const float a = x.template at<1>(t, col)[0];
      sum += Products ? double(a) * double(y.template at<1>(t, col)[0]) : double(a);
    }
  }
  parts[threadIdx.x] = sum;
  __syncthreads();
  if (warp != 0 || col >= cols) return;
  for (int w = 1; w < kSumRows; ++w) sum += parts[w * kSumColumns + lane];
  sums[col] = float(double(sums[col]) + sum);
}

template <class T, bool Accumulate>
struct ScaleColumns {
  static constexpr int kColumns = kVector<T>;
  Output<T> y;
  Input<T> x;
  Input<float> factors;
  template <int V>
  __device__ void run(int64_t row, int64_t col) const {
    Floats<V> a = x.template at<V>(row, col);
    const Floats<V> f = factors.at<V>(0, col);
#pragma unroll
    for (int i = 0; i < V; ++i) a[i] *= f[i];
    set_or_add<V>(y, row, col, a, Accumulate);
  }
};

template <bool Accumulate>
void scale_columns_as(Stream& stream, Matrix y, ConstMatrix x, ConstMatrix factors) {
  with_common_type({y.dtype, x.dtype}, [&]<class T>() {
    using Op = ScaleColumns<T, Accumulate>;
    map(stream, Op{Output<T>(y), Input<T>(x), Input<float>(factors)}, y.rows, y.cols,
        vectors_fit(Op::kColumns, {y, x, factors}));
  });
}

}  // namespace

void add_column_sums(Stream& stream, Matrix sums, ConstMatrix x, ConstMatrix y) {
  if (x.cols == 0) return;
  const auto blocks = unsigned((x.cols + kSumColumns - 1) / kSumColumns);
  with_common_type({x.dtype, y ? y.dtype : x.dtype}, [&]<class T>() {
    LORASHARD_CUDA_CHECK(launch(y ? column_sums_kernel<T, true> : column_sums_kernel<T, false>,
                                dim3(blocks), dim3(kSumColumns * kSumRows), 0, stream_of(stream),
                                static_cast<float*>(sums.data), Input<T>(x), Input<T>(y), x.rows,
                                x.cols));
  });
}

void scale_columns(Stream& stream, Matrix y, ConstMatrix x, ConstMatrix factors, bool accumulate) {
  if (accumulate)
    scale_columns_as<true>(stream, y, x, factors);
  else
    scale_columns_as<false>(stream, y, x, factors);
}

}  // namespace lorashard::cuda
