// Vectors of the target that is being compiled. Included once by each kernels/cpu/target_*.cpp,
// inside its own namespace and under its own instruction set; LORASHARD_TARGET names both.
//
// Compiler vector extensions give arithmetic, comparison and selection; only what they lack
// (masked access, square root, f16, widening products) is written in intrinsics.
//
// No include guard on purpose: a target file includes it exactly once. Standard headers are
// included before the instruction set is switched on.

namespace lorashard::LORASHARD_TARGET {

#if defined(LORASHARD_TARGET_AVX512)
constexpr int kBytes = 64;
#elif defined(LORASHARD_TARGET_AVX2)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

constexpr int W = kBytes / 4;  // floats in a vector

#define LORASHARD_INLINE [[gnu::always_inline]] inline

typedef float vf __attribute__((vector_size(kBytes)));
typedef int32_t vi __attribute__((vector_size(kBytes)));
typedef uint32_t vu __attribute__((vector_size(kBytes)));
typedef uint64_t vl __attribute__((vector_size(kBytes)));
typedef uint16_t vh __attribute__((vector_size(kBytes / 2)));

#if defined(LORASHARD_TARGET_AVX512)
LORASHARD_INLINE vf splat(float x) { return vf(_mm512_set1_ps(x)); }
#elif defined(LORASHARD_TARGET_AVX2)
LORASHARD_INLINE vf splat(float x) { return vf(_mm256_set1_ps(x)); }
#else
LORASHARD_INLINE vf splat(float x) { return vf{x, x, x, x}; }
#endif
LORASHARD_INLINE vf zero() { return vf{}; }

// a > b ? a : b and a < b ? a : b: where either is NaN, b.
#if defined(LORASHARD_TARGET_AVX512)
LORASHARD_INLINE vf max(vf a, vf b) {
  return vf(_mm512_maskz_max_ps(0xffff, __m512(a), __m512(b)));
}
LORASHARD_INLINE vf min(vf a, vf b) {
  return vf(_mm512_maskz_min_ps(0xffff, __m512(a), __m512(b)));
}
#elif defined(LORASHARD_TARGET_AVX2)
LORASHARD_INLINE vf max(vf a, vf b) { return vf(_mm256_max_ps(__m256(a), __m256(b))); }
LORASHARD_INLINE vf min(vf a, vf b) { return vf(_mm256_min_ps(__m256(a), __m256(b))); }
#else
LORASHARD_INLINE vf max(vf a, vf b) { return a > b ? a : b; }
LORASHARD_INLINE vf min(vf a, vf b) { return a < b ? a : b; }
#endif

// How many of a vector's lanes an access touches: all, or the first n < W.
struct Full {
  constexpr operator int() const { return W; }
};
struct Part {
  int n;
  operator int() const { return n; }
};

LORASHARD_INLINE vi lane_index() {
  vi v;
  for (int i = 0; i < W; ++i) v[i] = i;
  return v;
}

// v, with zeros in the lanes that an access leaves out.
LORASHARD_INLINE vf within(vf v, Full) { return v; }
LORASHARD_INLINE vf within(vf v, Part k) { return lane_index() < vi{} + k.n ? v : vf{}; }

// ---- access; lanes that a Part leaves out read as 0 and are not written.

LORASHARD_INLINE vf load(const float* p, Full = {}) {
  vf v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
LORASHARD_INLINE void store(float* p, vf v, Full = {}) { __builtin_memcpy(p, &v, sizeof v); }

#if defined(LORASHARD_TARGET_AVX512)
LORASHARD_INLINE vf load(const float* p, Part k) {
  return vf(_mm512_maskz_loadu_ps(__mmask16((1u << k.n) - 1), p));
}
LORASHARD_INLINE void store(float* p, vf v, Part k) {
  _mm512_mask_storeu_ps(p, __mmask16((1u << k.n) - 1), __m512(v));
}
#elif defined(LORASHARD_TARGET_AVX2)
LORASHARD_INLINE vf load(const float* p, Part k) {
  return vf(_mm256_maskload_ps(p, __m256i(lane_index() < vi{} + k.n)));
}
LORASHARD_INLINE void store(float* p, vf v, Part k) {
  _mm256_maskstore_ps(p, __m256i(lane_index() < vi{} + k.n), __m256(v));
}
#else
LORASHARD_INLINE vf load(const float* p, Part k) {
  vf v{};
  for (int i = 0; i < k.n; ++i) v[i] = p[i];
  return v;
}
LORASHARD_INLINE void store(float* p, vf v, Part k) {
  for (int i = 0; i < k.n; ++i) p[i] = v[i];
}
#endif

// 16-bit storage; see float_types.h for the formats and the rounding.
LORASHARD_INLINE vh load_bits(const uint16_t* p, Full) {
  vh h;
  __builtin_memcpy(&h, p, sizeof h);
  return h;
}
LORASHARD_INLINE vh load_bits(const uint16_t* p, Part k) {
  uint16_t t[W] = {};
  for (int i = 0; i < k.n; ++i) t[i] = p[i];
  return load_bits(t, Full{});
}
LORASHARD_INLINE void store_bits(uint16_t* p, vh h, Full) { __builtin_memcpy(p, &h, sizeof h); }
LORASHARD_INLINE void store_bits(uint16_t* p, vh h, Part k) {
  for (int i = 0; i < k.n; ++i) p[i] = h[i];
}

struct BF16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

template <class K>
LORASHARD_INLINE vf load(const BF16* p, K k) {
  return vf(__builtin_convertvector(load_bits(&p->bits, k), vu) << 16);
}
template <class K>
LORASHARD_INLINE void store(BF16* p, vf v, K k) {
  const vu u = vu(v);
  const vu rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  const vu nan = (u >> 16) | 0x40;
  store_bits(&p->bits, __builtin_convertvector(v == v ? rounded : nan, vh), k);
}

#if defined(LORASHARD_TARGET_AVX512)
LORASHARD_INLINE vf from_f16(vh h) { return vf(_mm512_maskz_cvtph_ps(0xffff, __m256i(h))); }
LORASHARD_INLINE vh to_f16(vf v) { return vh(_mm512_maskz_cvtps_ph(0xffff, __m512(v), 0)); }
#elif defined(LORASHARD_TARGET_AVX2)
LORASHARD_INLINE vf from_f16(vh h) { return vf(_mm256_cvtph_ps(__m128i(h))); }
LORASHARD_INLINE vh to_f16(vf v) { return vh(_mm256_cvtps_ph(__m256(v), 0)); }
#else
LORASHARD_INLINE vf from_f16(vh h) {
  vf v;
  for (int i = 0; i < W; ++i) v[i] = f16_to_float(h[i]);
  return v;
}
LORASHARD_INLINE vh to_f16(vf v) {
  vh h;
  for (int i = 0; i < W; ++i) h[i] = float_to_f16(v[i]);
  return h;
}
#endif

template <class K>
LORASHARD_INLINE vf load(const F16* p, K k) {
  return from_f16(load_bits(&p->bits, k));
}
template <class K>
LORASHARD_INLINE void store(F16* p, vf v, K k) {
  store_bits(&p->bits, to_f16(v), k);
}

// ---- loops and reductions

// body(i, Full) for every whole vector of [0, n), then body(i, Part) for the rest.
template <class Body>
LORASHARD_INLINE void each(int64_t n, Body body) {
  int64_t i = 0;
  for (; i + W <= n; i += W) body(i, Full{});
  if (i < n) body(i, Part{int(n - i)});
}

LORASHARD_INLINE float sum(vf v) {
  float s[W];
  store(s, v);
  for (int width = W / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) s[i] += s[i + width];
  return s[0];
}
LORASHARD_INLINE float max_lane(vf v) {
  float m = v[0];
  for (int i = 1; i < W; ++i) m = m > v[i] ? m : v[i];
  return m;
}

// Calls f with a typed pointer in place of (p, dtype): F32 or BF16, the types of activations.
template <class F>
LORASHARD_INLINE void typed(const void* p, DType dtype, F f) {
  return dtype == DType::F32 ? f(static_cast<const float*>(p)) : f(static_cast<const BF16*>(p));
}
template <class F>
LORASHARD_INLINE void typed(void* p, DType dtype, F f) {
  return dtype == DType::F32 ? f(static_cast<float*>(p)) : f(static_cast<BF16*>(p));
}

// typed() with F16 too, which frozen weights may be stored in.
template <class F>
LORASHARD_INLINE void typed_weight(const void* p, DType dtype, F f) {
  return dtype == DType::F16 ? f(static_cast<const F16*>(p)) : typed(p, dtype, f);
}
template <class F>
LORASHARD_INLINE void typed_weight(void* p, DType dtype, F f) {
  return dtype == DType::F16 ? f(static_cast<F16*>(p)) : typed(p, dtype, f);
}

// The intrinsics with a mask of ones stand in for the plain ones, whose "undefined" operand makes
// g++ 12 warn.

// ---- functions

LORASHARD_INLINE vf sqrt(vf x) {
#if defined(LORASHARD_TARGET_AVX512)
  return vf(_mm512_maskz_sqrt_ps(0xffff, __m512(x)));
#elif defined(LORASHARD_TARGET_AVX2)
  return vf(_mm256_sqrt_ps(__m256(x)));
#else
  vf y;
  for (int i = 0; i < W; ++i) y[i] = __builtin_sqrtf(x[i]);
  return y;
#endif
}

// e^x. At most 2 ulp off for results in [2^-126, max float]; smaller results are 0, larger
// arguments give e^88.37; NaN stays. x = n ln2 + r, |r| <= ln2/2, with the minimax polynomial of
// the Cephes library for e^r (Moshier 1989).
LORASHARD_INLINE vf exp(vf x) {
  const vf low = splat(-87.33654f);
  const vf y = min(splat(88.37626f), x);
  const vf shift = splat(0x1.8p23f);  // adding it rounds to an integer in the low bits
  const vf shifted = y * 1.44269504f + shift;
  const vf n = shifted - shift;
  const vf r = (y - n * 0.693359375f) - n * -2.12194440e-4f;
  vf p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + (r + 1.0f);
  const vf power = vf((vi(shifted) + 127) << 23);  // 2^n: the shift's own bits leave with << 23
  return x < low ? zero() : p * power;
}

// 2^x for x < 127.5, at most 2 ulp off; results below 2^-126 are 0, 2^0 is 1 exactly, NaN stays.
// The minimax polynomial of degree 6 on [-1/2, 1/2] with constant term 1, relative error 2e-9.
LORASHARD_INLINE vf exp2(vf x) {
  const vf shift = splat(0x1.8p23f);
  const vf shifted = x + shift;
  const vf r = x - (shifted - shift);
  vf p = splat(0x1.41fbbcp-13f);
  p = p * r + 0x1.5f3e54p-10f;
  p = p * r + 0x1.3b2d4cp-7f;
  p = p * r + 0x1.c6aee8p-5f;
  p = p * r + 0x1.ebfbdcp-3f;
  p = p * r + 0x1.62e430p-1f;
  p = p * r + 1.0f;
  const vf power = vf((vi(shifted) + 127) << 23);
  return x < splat(-126.0f) ? zero() : p * power;
}

// 1 / (1 + e^-x), within 4 ulp.
LORASHARD_INLINE vf sigmoid(vf x) { return 1.0f / (1.0f + exp(-x)); }

// The error function, absolute error below 3e-7: a rational approximation on [-4, 4], beyond
// which it is +-1 in fp32.
LORASHARD_INLINE vf erf(vf x) {
  const vf t = max(splat(-4.0f), min(splat(4.0f), x)), u = t * t;
  vf p = splat(-2.72614225801306e-10f);
  p = p * u + 2.77068142495902e-08f;
  p = p * u - 2.10102402082508e-06f;
  p = p * u - 5.69250639462346e-05f;
  p = p * u - 7.34990630326855e-04f;
  p = p * u - 2.95459980854025e-03f;
  p = p * u - 1.60960333262415e-02f;
  vf q = splat(-1.45660718464996e-05f);
  q = q * u - 2.13374055278905e-04f;
  q = q * u - 1.68282697438203e-03f;
  q = q * u - 7.37332916720468e-03f;
  q = q * u - 1.42647390514189e-02f;
  return x == x ? t * p / q : x;
}

}  // namespace lorashard::LORASHARD_TARGET
