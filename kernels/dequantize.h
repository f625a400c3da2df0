// Dequantises base weights: NF4 (Dettmers et al. 2023, QLoRA) as bitsandbytes stores it, and int8
// with a scale a row.
#pragma once

#include <cstdint>

#include "kernels/stream.h"
#include "kernels/tensor.h"

namespace lorashard {

// What the 16 codes stand for: quantiles of the normal distribution, scaled to [-1, 1], 0 among
// them.
inline constexpr float kNf4Levels[16] = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};
inline constexpr int64_t kNf4Block = 64;  // elements that share an absolute maximum
inline constexpr int64_t kNf4AbsmaxBlock =
    256;  // maxima that share a scale, where they too are quantised

// A matrix, or a block of one, in NF4. Elements are numbered through the whole quantised tensor,
// row after row: element (i, j) has the number e = first + i * ld + j. Byte e / 2 of `codes` holds
// it, in the high half where e is even. The pointers are those of the whole tensor, on the stream's
// device.
struct Nf4Matrix {
  const uint8_t* codes = nullptr;
  int64_t rows = 0, cols = 0, ld = 0, first = 0;
  // Absolute maximum of each kNf4Block elements. Null where the maxima are quantised themselves:
  // maximum b = absmax_levels[absmax_codes[b]] * absmax_scales[b / kNf4AbsmaxBlock] +
  // absmax_offset.
  const float* absmax = nullptr;
  const uint8_t* absmax_codes = nullptr;
  const float* absmax_levels = nullptr;  // 256
  const float* absmax_scales = nullptr;
  float absmax_offset = 0;

  // Rows [r, r + n) and columns [c, c + m) of this matrix.
  Nf4Matrix block(int64_t r, int64_t n, int64_t c, int64_t m) const {
    Nf4Matrix part = *this;
    part.first += r * ld + c;
    part.rows = n;
    part.cols = m;
    return part;
  }
};

// y = w: level * maximum, formed in fp32 and rounded once. y: F32, BF16 or F16.
void dequantize_nf4(Stream& stream, Matrix y, const Nf4Matrix& w);

// y(i, j) = codes(i, j) * scales[i]. codes: I8; scales: a value a row, F32. y as above.
void dequantize_int8(Stream& stream, Matrix y, ConstMatrix codes, const float* scales);

}  // namespace lorashard
