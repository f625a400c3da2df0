// Row-wise inner loops of CpuKernels for the target being compiled; see table.h for what each does.
// Included once by each target_*.cpp, after simd.h.

namespace lorashard::LORASHARD_TARGET {

inline void convert(void* y, DType yt, const void* x, DType xt, int64_t n) {
  typed_weight(x, xt, [&](auto* in) {
    typed_weight(y, yt, [&](auto* out) {
      each(n, [&](int64_t i, auto k) { store(out + i, load(in + i, k), k); });
    });
  });
}

inline void add(void* y, DType yt, const void* a, DType at, const void* b, DType bt, const float* c,
                int64_t n) {
  typed(a, at, [&](auto* pa) {
    typed_weight(b, bt, [&](auto* pb) {
      typed(y, yt, [&](auto* out) {
        if (c)
          each(n, [&](int64_t i, auto k) {
            store(out + i, load(pa + i, k) + (load(pb + i, k) + load(c + i, k)), k);
          });
        else
          each(n, [&](int64_t i, auto k) { store(out + i, load(pa + i, k) + load(pb + i, k), k); });
      });
    });
  });
}

inline void scale(void* y, DType yt, const void* x, DType xt, float factor, int64_t n) {
  typed_weight(x, xt, [&](auto* in) {
    typed(y, yt, [&](auto* out) {
      each(n, [&](int64_t i, auto k) { store(out + i, load(in + i, k) * factor, k); });
    });
  });
}

inline void scale_add(void* y, DType yt, const float* x, float alpha, float beta, int64_t n) {
  typed(y, yt, [&](auto* out) {
    if (beta == 0)
      each(n, [&](int64_t i, auto k) { store(out + i, alpha * load(x + i, k), k); });
    else
      each(n, [&](int64_t i, auto k) {
        store(out + i, alpha * load(x + i, k) + beta * load(out + i, k), k);
      });
  });
}

inline void rms_norm_forward(void* y, DType yt, float* rstd, const void* x, DType xt,
                             const float* gain, int64_t d, int64_t groups, float eps) {
  typed(x, xt, [&](auto* in) {
    typed(y, yt, [&](auto* out) {
      for (int64_t g = 0; g < groups; ++g, in += d, out += d) {
        vf s = zero();
        each(d, [&](int64_t i, auto k) {
          const vf v = load(in + i, k);
          s += v * v;
        });
        const float r = 1 / __builtin_sqrtf(sum(s) / float(d) + eps);
        if (rstd) rstd[g] = r;
        each(d, [&](int64_t i, auto k) {
          store(out + i, load(in + i, k) * r * load(gain + i, k), k);
        });
      }
    });
  });
}

// With n = x * rstd and w = gain * dy: dx = rstd * (w - n * mean(w n)).
inline void rms_norm_backward(void* dx, DType dxt, const void* dy, DType dyt, const void* x,
                              DType xt, const float* rstd, const float* gain, int64_t d,
                              int64_t groups, bool accumulate) {
  typed(x, xt, [&](auto* in) {
    typed(dy, dyt, [&](auto* grad) {
      typed(dx, dxt, [&](auto* out) {
        for (int64_t g = 0; g < groups; ++g, in += d, grad += d, out += d) {
          vf s = zero();
          each(d, [&](int64_t i, auto k) {
            s += load(in + i, k) * load(gain + i, k) * load(grad + i, k);
          });
          const float r = rstd[g], c = sum(s) * r * r * r / float(d);
          each(d, [&](int64_t i, auto k) {
            vf v = r * load(gain + i, k) * load(grad + i, k) - c * load(in + i, k);
            if (accumulate) v += load(out + i, k);
            store(out + i, v, k);
          });
        }
      });
    });
  });
}

inline void layer_norm_forward(void* y, DType yt, float* mean_rstd, const void* x, DType xt,
                               const float* gain, const float* bias, int64_t d, float eps) {
  typed(x, xt, [&](auto* in) {
    typed(y, yt, [&](auto* out) {
      vf s = zero();
      each(d, [&](int64_t i, auto k) { s += load(in + i, k); });
      const float mean = sum(s) / float(d);
      vf squares = zero();
      each(d, [&](int64_t i, auto k) {
        const vf v = within(load(in + i, k) - mean, k);
        squares += v * v;
      });
      const float r = 1 / __builtin_sqrtf(sum(squares) / float(d) + eps);
      if (mean_rstd) mean_rstd[0] = mean, mean_rstd[1] = r;
      each(d, [&](int64_t i, auto k) {
        store(out + i, (load(in + i, k) - mean) * r * load(gain + i, k) + load(bias + i, k), k);
      });
    });
  });
}

// With n = (x - mean) * rstd and w = gain * dy: dx = rstd * (w - mean(w) - n * mean(w n)).
inline void layer_norm_backward(void* dx, DType dxt, const void* dy, DType dyt, const void* x,
                                DType xt, const float* mean_rstd, const float* gain, int64_t d,
                                bool accumulate) {
  typed(x, xt, [&](auto* in) {
    typed(dy, dyt, [&](auto* grad) {
      typed(dx, dxt, [&](auto* out) {
        const float mean = mean_rstd[0], r = mean_rstd[1];
        vf all = zero(), along = zero();
        each(d, [&](int64_t i, auto k) {
          const vf w = load(gain + i, k) * load(grad + i, k);
          all += w;
          along += w * (load(in + i, k) - mean);
        });
        const float a = sum(all) / float(d), c = sum(along) * r * r / float(d);
        each(d, [&](int64_t i, auto k) {
          vf v = r * (load(gain + i, k) * load(grad + i, k) - a - c * (load(in + i, k) - mean));
          if (accumulate) v += load(out + i, k);
          store(out + i, v, k);
        });
      });
    });
  });
}

inline void rope(void* x, DType xt, int64_t heads, int64_t d, int64_t r, const float* cos_sin,
                 bool inverse) {
  const float sign = inverse ? -1.0f : 1.0f;
  typed(x, xt, [&](auto* p) {
    for (int64_t h = 0; h < heads; ++h, p += d)
      each(r, [&](int64_t i, auto k) {
        const vf c = load(cos_sin + i, k), s = sign * load(cos_sin + r + i, k);
        const vf a = load(p + i, k), b = load(p + r + i, k);
        store(p + i, a * c - b * s, k);
        store(p + r + i, b * c + a * s, k);
      });
  });
}

// f(x) and f'(x).
struct Gate {
  vf value, slope;
};

template <Activation F>
LORASHARD_INLINE Gate gate(vf x) {
  if constexpr (F == Activation::SILU) {
    const vf s = sigmoid(x), v = x * s;
    return {v, s + v * (1.0f - s)};
  } else if constexpr (F == Activation::GELU) {  // x Phi(x)
    const vf phi = 0.5f + 0.5f * erf(x * 0.707106781f);
    return {x * phi, phi + x * 0.398942280f * exp(-0.5f * x * x)};
  } else {  // x (1 + tanh u)/2 = x sigmoid(2u), u = sqrt(2/pi)(x + 0.044715 x^3)
    const vf x2 = x * x, s = sigmoid(1.595769122f * x * (1.0f + 0.044715f * x2));
    return {x * s, s + x * s * (1.0f - s) * 1.595769122f * (1.0f + 0.134145f * x2)};
  }
}

template <class Body>
LORASHARD_INLINE void with_activation(Activation f, Body body) {
  switch (f) {
    case Activation::SILU:
      return body([](vf x) { return gate<Activation::SILU>(x); });
    case Activation::GELU:
      return body([](vf x) { return gate<Activation::GELU>(x); });
    case Activation::GELU_TANH:
      return body([](vf x) { return gate<Activation::GELU_TANH>(x); });
  }
}

// The two storage types of activations, without F16.
template <class F>
LORASHARD_INLINE void as_activation(DType t, F f) {
  return t == DType::F32 ? f(static_cast<float*>(nullptr)) : f(static_cast<BF16*>(nullptr));
}

inline void activation_forward(void* y, const void* gate, const void* up, DType t, int64_t n,
                               Activation f) {
  as_activation(t, [&]<class T>(T*) {
    with_activation(f, [&](auto function) {
      T* out = static_cast<T*>(y);
      const T *g = static_cast<const T*>(gate), *u = static_cast<const T*>(up);
      each(n, [&](int64_t i, auto k) {
        vf v = function(load(g + i, k)).value;
        if (u) v *= load(u + i, k);
        store(out + i, v, k);
      });
    });
  });
}

inline void activation_backward(void* d_gate, void* d_up, const void* dy, const void* gate,
                                const void* up, DType t, int64_t n, Activation f) {
  as_activation(t, [&]<class T>(T*) {
    with_activation(f, [&](auto function) {
      T *dg = static_cast<T*>(d_gate), *du = static_cast<T*>(d_up);
      const T *d = static_cast<const T*>(dy), *g = static_cast<const T*>(gate),
              *u = static_cast<const T*>(up);
      each(n, [&](int64_t i, auto k) {
        const Gate a = function(load(g + i, k));
        const vf grad = load(d + i, k);
        const vf through = u ? grad * load(u + i, k) : grad;
        store(dg + i, through * a.slope, k);
        if (du) store(du + i, grad * a.value, k);
      });
    });
  });
}

// Philox-4x32-10 (random.h) on kCounters counters at once. Lanes are 64 bits wide and hold a word
// in their low half; the high half is rubbish that the products do not read.
constexpr int kCounters = W / 2;

LORASHARD_INLINE vl low_product(vl a, uint32_t b) {
#if defined(LORASHARD_TARGET_AVX512)
  return vl(_mm512_maskz_mul_epu32(0xff, __m512i(a), _mm512_set1_epi64(b)));
#elif defined(LORASHARD_TARGET_AVX2)
  return vl(_mm256_mul_epu32(__m256i(a), _mm256_set1_epi64x(b)));
#else
  return (a & 0xffffffffu) * uint64_t{b};
#endif
}

// words[4 * kCounters] of random_words(seed, Purpose::Dropout, hi, lo + i), i < kCounters.
LORASHARD_INLINE void philox(uint32_t* words, uint64_t key, uint64_t hi, uint64_t lo) {
  vl c0;
  for (int i = 0; i < kCounters; ++i) c0[i] = lo + i;
  vl c1 = c0 >> 32, c2 = vl{} + hi, c3 = vl{} + (hi >> 32);
  uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const vl p0 = low_product(c0, 0xD2511F53u), p1 = low_product(c2, 0xCD9E8D57u);
    c0 = (p1 >> 32) ^ c1 ^ uint64_t { k0 };
    c1 = p1;
    c2 = (p0 >> 32) ^ c3 ^ uint64_t { k1 };
    c3 = p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  // The halves of each counter's four words, then halves of one counter side by side.
  const vl first = (c0 & 0xffffffffu) | c1 << 32, second = (c2 & 0xffffffffu) | c3 << 32;
#if defined(LORASHARD_TARGET_AVX512)
  const vl low = __builtin_shufflevector(first, second, 0, 8, 1, 9, 2, 10, 3, 11);
  const vl high = __builtin_shufflevector(first, second, 4, 12, 5, 13, 6, 14, 7, 15);
#elif defined(LORASHARD_TARGET_AVX2)
  const vl low = __builtin_shufflevector(first, second, 0, 4, 1, 5);
  const vl high = __builtin_shufflevector(first, second, 2, 6, 3, 7);
#else
  const vl low = __builtin_shufflevector(first, second, 0, 2);
  const vl high = __builtin_shufflevector(first, second, 1, 3);
#endif
  __builtin_memcpy(words, &low, sizeof low);
  __builtin_memcpy(words + W, &high, sizeof high);
}

inline void dropout(void* y, DType yt, const void* x, DType xt, uint64_t seed, uint32_t site,
                    uint64_t row_key, int64_t first_col, int64_t n, uint32_t threshold,
                    float factor, bool accumulate) {
  constexpr int kWords = 4 * kCounters;  // two vectors
  const uint64_t key = (seed + 1) * 0x9E3779B97F4A7C15ull ^ (uint64_t(Purpose::Dropout) << 56);
  typed(x, xt, [&](auto* in) {
    typed(y, yt, [&](auto* out) {
      // The first words may belong to columns before first_col.
      const int64_t skip = first_col % 4, first = first_col / 4;
      for (int64_t c = -skip; c < n; c += kWords) {
        uint32_t words[kWords];
        philox(words, key, row_key, (uint64_t{site} << 32) + uint64_t(first + (c + skip) / 4));
        const int64_t begin = c < 0 ? 0 : c, end = c + kWords < n ? c + kWords : n;
        const uint32_t* w = words + (begin - c);
        each(end - begin, [&](int64_t i, auto k) {
          vu word{};
          __builtin_memcpy(&word, w + i, sizeof(uint32_t) * size_t(int(k)));
          // Both sides fit in 24 bits, so that signed comparison is right.
          const vf keep = vi(word >> 8) >= vi{} + int32_t(threshold) ? splat(factor) : zero();
          vf v = load(in + begin + i, k) * keep;
          if (accumulate) v += load(out + begin + i, k);
          store(out + begin + i, v, k);
        });
      }
    });
  });
}

// Four rows of w at a time, two vectors of each in flight, so that eight sums hide the latency of
// an addition.
inline void dot_rows(float* y, const float* x, const void* w, DType wt, int64_t ldw, int64_t n,
                     int64_t k) {
  typed_weight(w, wt, [&](auto* row) {
    int64_t j = 0;
    for (; j + 4 <= n; j += 4, row += 4 * ldw) {
      vf s[4][2] = {};
      int64_t p = 0;
      for (; p + 2 * W <= k; p += 2 * W) {
        const vf x0 = load(x + p), x1 = load(x + p + W);
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) {
          s[r][0] += x0 * load(row + r * ldw + p, Full{});
          s[r][1] += x1 * load(row + r * ldw + p + W, Full{});
        }
      }
      for (int r = 0; r < 4; ++r) {
        each(k - p, [&](int64_t i, auto lanes) {
          s[r][0] += load(x + p + i, lanes) * load(row + r * ldw + p + i, lanes);
        });
        y[j + r] = sum(s[r][0] + s[r][1]);
      }
    }
    for (; j < n; ++j, row += ldw) {
      vf s = zero();
      each(k, [&](int64_t i, auto lanes) { s += load(x + i, lanes) * load(row + i, lanes); });
      y[j] = sum(s);
    }
  });
}

// x is read from memory once: each piece is read twice while it is in cache, and the sum so far is
// rescaled when the maximum grows.
inline void row_max_sum(const void* x, DType xt, int64_t n, float* maximum, float* total) {
  constexpr int64_t kPiece = 2048;
  float m = -__builtin_inff(), s = 0;
  typed(x, xt, [&](auto* in) {
    for (int64_t begin = 0; begin < n; begin += kPiece) {
      const auto* piece = in + begin;
      const int64_t count = n - begin < kPiece ? n - begin : kPiece;
      vf top = splat(-__builtin_inff());
      each(count, [&](int64_t i, auto k) {
        vf v = load(piece + i, k);
        if (int(k) < W) v = lane_index() < vi{} + int(k) ? v : top;
        top = v == v ? max(v, top) : v;  // NaN stays
      });
      const float piece_max = max_lane(top);
      if (!(piece_max <= m)) {
        s *= m == piece_max ? 1.0f : __builtin_expf(m - piece_max);
        m = piece_max;
      }
      vf part = zero();
      each(count, [&](int64_t i, auto k) {
        const vf e = exp(load(piece + i, k) - m);
        part += int(k) < W ? (lane_index() < vi{} + int(k) ? e : zero()) : e;
      });
      s += sum(part);
    }
  });
  *maximum = m;
  *total = s;
}

inline void softmax_gradient(void* x, DType xt, int64_t n, float lse, float factor) {
  typed(x, xt, [&](auto* p) {
    each(n, [&](int64_t i, auto k) { store(p + i, factor * exp(load(p + i, k) - lse), k); });
  });
}

inline void adamw(float* p, float* m, float* v, const float* g, int64_t n, const AdamWStep& step) {
  // Corrections in double, as PyTorch forms them.
  const double c1 = 1 - __builtin_pow(double(step.beta1), double(step.step));
  const double c2 = 1 - __builtin_pow(double(step.beta2), double(step.step));
  const float rate = float(double(step.learning_rate) / c1), root2 = float(__builtin_sqrt(c2));
  const float decay = float(1 - double(step.learning_rate) * double(step.weight_decay));
  const float one_minus_b1 = float(1 - double(step.beta1)),
              one_minus_b2 = float(1 - double(step.beta2));
  each(n, [&](int64_t i, auto k) {
    const vf grad = load(g + i, k) * step.gradient_scale, m0 = load(m + i, k);
    const vf m1 = m0 + one_minus_b1 * (grad - m0);
    const vf v1 = step.beta2 * load(v + i, k) + one_minus_b2 * (grad * grad);
    store(m + i, m1, k);
    store(v + i, v1, k);
    store(p + i, load(p + i, k) * decay - rate * m1 / (sqrt(v1) / root2 + step.epsilon), k);
  });
}

// Sixteen sums whatever the vector width; squares of floats are exact in double, so every target
// gives the same bits.
inline double sum_of_squares(const float* x, int64_t n) {
  double s[16] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) s[j] += double(x[i + j]) * double(x[i + j]);
  for (; i < n; ++i) s[i % 16] += double(x[i]) * double(x[i]);
  for (int width = 8; width > 0; width /= 2)
    for (int j = 0; j < width; ++j) s[j] += s[j + width];
  return s[0];
}

}  // namespace lorashard::LORASHARD_TARGET
