// Counter-based RNG: Philox-4x32-10 (Salmon et al. 2011). A value is a function of (seed, purpose,
// index) and of nothing else, so rank counts and restarts change nothing.
#pragma once

#include <array>
#include <cstdint>

namespace lorashard {

enum class Purpose : uint32_t { FactorInit = 1, Dropout = 2, Shuffle = 3, Sampling = 4 };

inline std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> c, std::array<uint32_t, 2> k) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c[0], p1 = uint64_t{0xCD9E8D57u} * c[2];
    c = {uint32_t(p1 >> 32) ^ c[1] ^ k[0], uint32_t(p1), uint32_t(p0 >> 32) ^ c[3] ^ k[1],
         uint32_t(p0)};
    k[0] += 0x9E3779B9u;
    k[1] += 0xBB67AE85u;
  }
  return c;
}

// Four words for a 128-bit position (hi, lo) under (seed, purpose).
inline std::array<uint32_t, 4> random_words(uint64_t seed, Purpose purpose, uint64_t hi,
                                            uint64_t lo) {
  // The purpose is mixed into the key, so that streams of different purposes never meet.
  const uint64_t key = (seed + 1) * 0x9E3779B97F4A7C15ull ^ (uint64_t(purpose) << 56);
  return philox4x32({uint32_t(lo), uint32_t(lo >> 32), uint32_t(hi), uint32_t(hi >> 32)},
                    {uint32_t(key), uint32_t(key >> 32)});
}

// Uniform in [0, 1) with 24 bits.
inline float uniform01(uint32_t word) { return float(word >> 8) * 0x1p-24f; }

}  // namespace lorashard
