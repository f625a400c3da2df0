#include "kernels/rope.h"

#include <cassert>

#include "kernels/cuda/kernels.h"
#include "kernels/cuda/map_rows.h"

namespace lorashard::cuda {
namespace {

// A row of the kernel is a token and up to kHeads of its heads, a column one of the R pairs: the
// cosines and sines are read once for kHeads heads.
template <class T>
struct Rotate {
  static constexpr int kColumns = kVector<T>;
  static constexpr int kHeads = 4;
  Output<T> x;
  Input<float> cos_sin;
  const int32_t* positions;
  int64_t heads, d, r;
  uint32_t parts;  // rows of the kernel a token; tokens times heads stay below 2^31
  float sign;
  template <int V>
  __device__ void run(int64_t row, int64_t col) const {
    const uint32_t token = uint32_t(row) / parts, part = uint32_t(row) - token * parts;
    const int64_t first = int64_t{part} * kHeads;
    const int64_t position = positions[token];
    const Floats<V> c = cos_sin.at<V>(position, col), s = cos_sin.at<V>(position, r + col);
    const int count = int(heads - first < kHeads ? heads - first : kHeads);
#pragma unroll 1  // registers: more threads hide more than more heads in flight
    for (int h = 0; h < count; ++h) {
      const int64_t left = (first + h) * d + col, right = left + r;
      Floats<V> a = x.template at<V>(token, left), b = x.template at<V>(token, right);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const float turn = sign * s[i], ai = a[i];
        a[i] = ai * c[i] - b[i] * turn;
        b[i] = b[i] * c[i] + ai * turn;
      }
      x.template set<V>(token, left, a);
      x.template set<V>(token, right, b);
    }
  }
};

}  // namespace

void rope(Stream& stream, Matrix x, int64_t heads, const int32_t* positions, ConstMatrix cos_sin,
          bool inverse) {
  if (heads == 0) return;
  const int64_t d = x.cols / heads, r = cos_sin.cols / 2;
  with_common_type({x.dtype}, [&]<class T>() {
    using Op = Rotate<T>;
    const int64_t parts = (heads + Op::kHeads - 1) / Op::kHeads;
    // Both halves of every head must start at a whole vector.
    const bool fits =
        d % Op::kColumns == 0 && r % Op::kColumns == 0 && vectors_fit(Op::kColumns, {x, cos_sin});
    assert(x.rows * parts <= INT32_MAX);
    map(stream,
        Op{Output<T>(x), Input<float>(cos_sin), positions, heads, d, r, uint32_t(parts),
           inverse ? -1.0f : 1.0f},
        x.rows * parts, r, fits);
  });
}

}  // namespace lorashard::cuda
