// The mask of kernels/dropout.h on the device.
#pragma once

#include <cmath>

#include "kernels/cuda/portable.h"
#include "kernels/dropout.h"

namespace lorashard::cuda {

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

// A mask whose columns are counted from the first that shares its words with the slice's first
// column: local column j is column skew + j of the mask, and columns 4i to 4i + 3 share words.
struct MaskOnDevice {
  explicit MaskOnDevice(const DropoutMask& m)
      : row_keys(m.row_keys),
        counter((uint64_t{m.site} << 32) + uint64_t(m.first_col / 4)),
        skew(int(m.first_col % 4)),
        factor(float(1 / (1 - double(m.p)))) {
    const uint64_t key = (m.seed + 1) * 0x9E3779B97F4A7C15ull ^ (uint64_t(Purpose::Dropout) << 56);
    k0 = uint32_t(key);
    k1 = uint32_t(key >> 32);
    // uniform01(word) >= p in integers (kernels/dropout.cpp), here of the whole word.
    least = uint32_t(std::ceil(double(m.p) * 0x1p24)) << 8;
  }
  // The words of columns 4 quad to 4 quad + 3 in the row of this key.
  __device__ __forceinline__ Words words(uint64_t row_key, uint64_t quad) const {
    return philox(k0, k1, row_key, counter + quad);
  }
  __device__ __forceinline__ bool keeps(uint32_t word) const { return word >= least; }

  // x as dropout leaves it where this word decides.
  __device__ __forceinline__ float apply(uint32_t word, float x) const {
    return keeps(word) ? factor * x : 0;
  }

  const uint64_t* row_keys;
  uint64_t counter;  // of columns 0 to 3
  uint32_t k0, k1, least;
  int skew;
  float factor;  // of what is kept
};

}  // namespace lorashard::cuda
