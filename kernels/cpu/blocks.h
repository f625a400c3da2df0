// GEMM of blocks that lie in cache, the arithmetic of attention. Included by each
// target_*.cpp after simd.h.

namespace lorashard::LORASHARD_TARGET {

// Register tile: kRows rows by two vectors. The accumulators, two vectors of b and a broadcast
// fill the 16 (AVX-512: 32) registers.
#if defined(LORASHARD_TARGET_AVX512)
constexpr int kRows = 12;
#else
constexpr int kRows = 6;
#endif

// c(R, NV vectors) (+)= op(a) b. TransposedA: element (i, k) of op(a) is a[k * lda + i], else
// a[i * lda + k]. Lanes of the last vector as `last` says.
template <int R, int NV, bool TransposedA, class Last>
LORASHARD_INLINE void tile(float* c, int64_t ldc, const float* a, int64_t lda, const float* b,
                           int64_t ldb, int64_t k, bool accumulate, Last last) {
  vf acc[R][NV];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) acc[i][j] = zero();
  for (int64_t p = 0; p < k; ++p) {
    vf bv[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j)
      bv[j] = j + 1 < NV ? load(b + p * ldb + j * W) : load(b + p * ldb + j * W, last);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      const vf av = splat(TransposedA ? a[p * lda + i] : a[i * lda + p]);
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) acc[i][j] += av * bv[j];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) {
      float* out = c + i * ldc + j * W;
      if (j + 1 < NV)
        store(out, accumulate ? load(out) + acc[i][j] : acc[i][j]);
      else
        store(out, accumulate ? load(out, last) + acc[i][j] : acc[i][j], last);
    }
}

// The rows of one column panel: whole tiles, then what remains.
template <int NV, bool TransposedA, class Last>
void panel(float* c, int64_t ldc, const float* a, int64_t lda, const float* b, int64_t ldb,
           int64_t m, int64_t k, bool accumulate, Last last) {
  const int64_t step = TransposedA ? 1 : lda;
  int64_t i = 0;
  for (; i + kRows <= m; i += kRows)
    tile<kRows, NV, TransposedA>(c + i * ldc, ldc, a + i * step, lda, b, ldb, k, accumulate, last);
  const auto rest = [&]<int R>() {
    tile<R, NV, TransposedA>(c + i * ldc, ldc, a + i * step, lda, b, ldb, k, accumulate, last);
    i += R;
  };
  if constexpr (kRows > 6)
    if (m - i >= 6) rest.template operator()<6>();
  switch (m - i) {
    case 5:
      return rest.template operator()<5>();
    case 4:
      return rest.template operator()<4>();
    case 3:
      return rest.template operator()<3>();
    case 2:
      return rest.template operator()<2>();
    case 1:
      return rest.template operator()<1>();
  }
}

// c(m,n) = (or += when accumulate) op(a)(m,k) b(k,n), row-major with leading dimensions.
template <bool TransposedA>
void block_gemm(float* c, int64_t ldc, const float* a, int64_t lda, const float* b, int64_t ldb,
                int64_t m, int64_t n, int64_t k, bool accumulate) {
  int64_t j = 0;
  for (; j + 2 * W <= n; j += 2 * W)
    panel<2, TransposedA>(c + j, ldc, a, lda, b + j, ldb, m, k, accumulate, Full{});
  if (j + W <= n) {
    panel<1, TransposedA>(c + j, ldc, a, lda, b + j, ldb, m, k, accumulate, Full{});
    j += W;
  }
  if (j < n)
    panel<1, TransposedA>(c + j, ldc, a, lda, b + j, ldb, m, k, accumulate, Part{int(n - j)});
}

// block_gemm where `transposed` is known at run time only.
inline void any_block_gemm(float* c, int64_t ldc, const float* a, int64_t lda, bool transposed,
                           const float* b, int64_t ldb, int64_t m, int64_t n, int64_t k,
                           bool accumulate) {
  (transposed ? block_gemm<true> : block_gemm<false>)(c, ldc, a, lda, b, ldb, m, n, k, accumulate);
}

#if defined(LORASHARD_TARGET_AVX2) || defined(LORASHARD_TARGET_AVX512)
constexpr int64_t kTransposeTile = 8;

// An 8 x 8 tile in registers: pairs, then pairs of pairs, then halves.
LORASHARD_INLINE void transpose_tile(float* y, int64_t ldy, const float* x, int64_t ldx) {
  __m256 r[8], t[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(x + i * ldx);
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(y + i * ldy, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
    _mm256_storeu_ps(y + (i + 4) * ldy, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
  }
}
#else
constexpr int64_t kTransposeTile = 4;

LORASHARD_INLINE void transpose_tile(float* y, int64_t ldy, const float* x, int64_t ldx) {
  for (int64_t c = 0; c < 4; ++c)
    for (int64_t r = 0; r < 4; ++r) y[c * ldy + r] = x[r * ldx + c];
}
#endif

// y(n,m) = x(m,n)^T.
inline void transpose(float* y, int64_t ldy, const float* x, int64_t ldx, int64_t m, int64_t n) {
  constexpr int64_t kTile = kTransposeTile;
  const int64_t whole_m = m / kTile * kTile, whole_n = n / kTile * kTile;
  for (int64_t i = 0; i < whole_m; i += kTile)
    for (int64_t j = 0; j < whole_n; j += kTile)
      transpose_tile(y + j * ldy + i, ldy, x + i * ldx + j, ldx);
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = i < whole_m ? whole_n : 0; j < n; ++j) y[j * ldy + i] = x[i * ldx + j];
}

}  // namespace lorashard::LORASHARD_TARGET
