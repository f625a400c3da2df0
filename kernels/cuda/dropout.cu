#include "kernels/dropout.h"

#include "kernels/cuda/dropout_mask.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/map_rows.h"

namespace lorashard::cuda {
namespace {

__device__ __forceinline__ uint32_t select(const Words& x, int i) {
  return i == 0 ? x.w[0] : i == 1 ? x.w[1] : i == 2 ? x.w[2] : x.w[3];
}

// Skew: mask.skew, so that words stay in registers: indices must be known when compiling.
template <class T, int Skew>
struct Drop {
  static constexpr int kColumns = kVector<T>;
  Output<T> y;
  Input<T> x;
  MaskOnDevice mask;
  bool accumulate;
  template <int V>
  __device__ void run(int64_t row, int64_t col) const {
    const uint64_t key = mask.row_keys[row];
    Floats<V> v = x.template at<V>(row, col);
    if constexpr (V == 1) {
      const uint64_t c = uint64_t(col) + Skew;
      const Words words = mask.words(key, c / 4);
      v[0] *= mask.keeps(select(words, int(c % 4))) ? mask.factor : 0.0f;
    } else {
      // Vectors start at multiples of four columns of the slice.
      Words words = mask.words(key, uint64_t(col) / 4);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        if (i > 0 && (i + Skew) % 4 == 0)
          words = mask.words(key, uint64_t(col) / 4 + (i + Skew) / 4);
        v[i] *= mask.keeps(words.w[(i + Skew) % 4]) ? mask.factor : 0.0f;
      }
    }
    if (accumulate) {
      const Floats<V> before = y.template at<V>(row, col);
#pragma unroll
      for (int i = 0; i < V; ++i) v[i] += before[i];
    }
    y.template set<V>(row, col, v);
  }
};

template <class F>
void with_skew(int64_t skew, F body) {
  switch (skew) {
    case 0:
      return body.template operator()<0>();
    case 1:
      return body.template operator()<1>();
    case 2:
      return body.template operator()<2>();
    case 3:
      return body.template operator()<3>();
  }
}

}  // namespace

void dropout(Stream& stream, Matrix y, ConstMatrix x, uint64_t seed, uint32_t site,
             const uint64_t* row_keys, int64_t first_col, float p, bool accumulate) {
  const MaskOnDevice mask(DropoutMask{seed, site, row_keys, first_col, p});
  with_common_type({y.dtype, x.dtype}, [&]<class T>() {
    with_skew(mask.skew, [&]<int Skew>() {
      using Op = Drop<T, Skew>;
      map(stream, Op{Output<T>(y), Input<T>(x), mask, accumulate}, x.rows, x.cols,
          vectors_fit(Op::kColumns, {y, x}));
    });
  });
}

}  // namespace lorashard::cuda
