// Scalar conversions between float and the 16-bit storage types, which are held as their bits.
// Narrowing rounds to nearest even; NaN stays a quiet NaN with its sign; overflow gives infinity.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "kernels/tensor.h"

namespace lorashard {

// bf16 is the upper half of a float.
inline float bf16_to_float(uint16_t h) { return std::bit_cast<float>(uint32_t{h} << 16); }

inline uint16_t float_to_bf16(float f) {
  const uint32_t u = std::bit_cast<uint32_t>(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return uint16_t((u >> 16) | 0x40);
  return uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

// IEEE binary16: 1 sign, 5 exponent (bias 15) and 10 fraction bits, with subnormals.
inline float f16_to_float(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, magnitude = h & 0x7fff;
  if (magnitude >= 0x7c00)  // infinity or NaN
    return std::bit_cast<float>(sign | 0x7f800000u | ((magnitude & 0x3ff) << 13) |
                                (magnitude > 0x7c00 ? 0x400000u : 0));
  if (magnitude >= 0x400) return std::bit_cast<float>(sign | ((magnitude + (112u << 10)) << 13));
  const float subnormal = float(magnitude) * 0x1p-24f;  // exact
  return sign ? -subnormal : subnormal;
}

inline uint16_t float_to_f16(float f) {
  const uint32_t u = std::bit_cast<uint32_t>(f), magnitude = u & 0x7fffffffu;
  const uint16_t sign = uint16_t((u >> 16) & 0x8000);
  if (magnitude > 0x7f800000u) return sign | 0x7e00 | uint16_t((magnitude >> 13) & 0x3ff);
  if (magnitude >= 0x477ff000u) return sign | 0x7c00;  // 65520 and more round to infinity
  if (magnitude < 0x38800000u) {                       // below 2^-14: subnormal, step 2^-24
    // Adding 0.5 puts the step of the sum at 2^-24, so the addition itself rounds.
    const float sum = std::bit_cast<float>(magnitude) + 0.5f;
    return sign | uint16_t(std::bit_cast<uint32_t>(sum) - std::bit_cast<uint32_t>(0.5f));
  }
  const uint32_t rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
  return sign | uint16_t((rounded >> 13) - (112u << 10));
}

// Element i of an array of F32, BF16 or F16, as float. Slow: for edges and references.
inline float load_scalar(const void* data, DType dtype, int64_t i) {
  if (dtype == DType::F32) {
    float f;
    std::memcpy(&f, static_cast<const char*>(data) + 4 * i, 4);
    return f;
  }
  uint16_t h;
  std::memcpy(&h, static_cast<const char*>(data) + 2 * i, 2);
  return dtype == DType::BF16 ? bf16_to_float(h) : f16_to_float(h);
}

inline void store_scalar(void* data, DType dtype, int64_t i, float f) {
  if (dtype == DType::F32) {
    std::memcpy(static_cast<char*>(data) + 4 * i, &f, 4);
    return;
  }
  const uint16_t h = dtype == DType::BF16 ? float_to_bf16(f) : float_to_f16(f);
  std::memcpy(static_cast<char*>(data) + 2 * i, &h, 2);
}

}  // namespace lorashard
