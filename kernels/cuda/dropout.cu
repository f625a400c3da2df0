#include "kernels/dropout.h"

#include <cmath>

#include "kernels/cuda/kernels.h"
#include "kernels/cuda/map_rows.h"

namespace lorashard::cuda {
namespace {

struct Words {
  uint32_t w[4];
};

// random_words() of kernels/random.h: Philox-4x32-10 under the key that seed and purpose give.
__device__ __forceinline__ Words philox(uint32_t k0, uint32_t k1, uint64_t hi, uint64_t lo) {
  uint32_t c0 = uint32_t(lo), c1 = uint32_t(lo >> 32), c2 = uint32_t(hi), c3 = uint32_t(hi >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c0, p1 = uint64_t{0xCD9E8D57u} * c2;
    c0 = uint32_t(p1 >> 32) ^ c1 ^ k0;
    c1 = uint32_t(p1);
    c2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
    c3 = uint32_t(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

__device__ __forceinline__ uint32_t select(const Words& x, int i) {
  return i == 0 ? x.w[0] : i == 1 ? x.w[1] : i == 2 ? x.w[2] : x.w[3];
}

// Skew: first_col % 4, so that words stay in registers: indices must be known when compiling.
template <class T, int Skew>
struct Drop {
  static constexpr int kColumns = kVector<T>;
  Output<T> y;
  Input<T> x;
  const uint64_t* row_keys;
  uint32_t k0, k1;
  uint64_t site_counter;  // site * 2^32 + first_col / 4
  uint32_t threshold;     // keeps words whose upper 24 bits are at least this
  float factor;
  bool accumulate;
  template <int V>
  __device__ void run(int64_t row, int64_t col) const {
    const uint64_t key = row_keys[row];
    Floats<V> v = x.template at<V>(row, col);
    if constexpr (V == 1) {
      const uint64_t c = uint64_t(col) + Skew;
      const Words words = philox(k0, k1, key, site_counter + c / 4);
      v[0] *= select(words, int(c % 4)) >> 8 >= threshold ? factor : 0.0f;
    } else {
      // Vectors start at multiples of four columns of the slice.
      Words words = philox(k0, k1, key, site_counter + uint64_t(col) / 4);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        if (i > 0 && (i + Skew) % 4 == 0)
          words = philox(k0, k1, key, site_counter + uint64_t(col) / 4 + (i + Skew) / 4);
        v[i] *= words.w[(i + Skew) % 4] >> 8 >= threshold ? factor : 0.0f;
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
  const uint64_t key = (seed + 1) * 0x9E3779B97F4A7C15ull ^ (uint64_t(Purpose::Dropout) << 56);
  // As kernels/dropout.cpp: uniform01(word) >= p in integers.
  const uint32_t threshold = uint32_t(std::ceil(double(p) * 0x1p24));
  const float factor = float(1 / (1 - double(p)));
  with_common_type({y.dtype, x.dtype}, [&]<class T>() {
    with_skew(first_col % 4, [&]<int Skew>() {
      using Op = Drop<T, Skew>;
      map(stream,
          Op{Output<T>(y), Input<T>(x), row_keys, uint32_t(key), uint32_t(key >> 32),
             (uint64_t{site} << 32) + uint64_t(first_col / 4), threshold, factor, accumulate},
          x.rows, x.cols, vectors_fit(Op::kColumns, {y, x}));
    });
  });
}

}  // namespace lorashard::cuda
