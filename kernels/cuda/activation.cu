#include "kernels/activation.h"

#include "kernels/cuda/kernels.h"
#include "kernels/cuda/map_rows.h"

namespace lorashard::cuda {
namespace {

// Exact: full fp32 accuracy. Otherwise the hardware's approximations: their relative error, below
// 2^-17 down to exp(-60), does not show in a bf16 result, and without them bf16 activations would
// wait for arithmetic and not for memory.
template <bool Exact>
__device__ __forceinline__ float exponential(float x) {
  if constexpr (Exact) return expf(x);
  return __expf(x);
}

template <bool Exact>
__device__ __forceinline__ float sigmoid(float x) {
  const float d = 1.0f + exponential<Exact>(-x);
  if constexpr (Exact) return 1.0f / d;
  return __fdividef(1.0f, d);  // 0 for d above 2^126, where the sigmoid is below 2^-126
}

// f(x) and f'(x).
struct Gate {
  float value, slope;
};

template <Activation F, bool Exact>
__device__ __forceinline__ Gate gate_of(float x) {
  if constexpr (F == Activation::SILU) {
    const float s = sigmoid<Exact>(x), v = x * s;
    return {v, s + v * (1.0f - s)};
  } else if constexpr (F == Activation::GELU) {  // x Phi(x)
    const float phi = 0.5f * erfcf(x * -0.707106781f);
    return {x * phi, phi + x * 0.398942280f * exponential<Exact>(-0.5f * x * x)};
  } else {  // x (1 + tanh u)/2 = x sigmoid(2u), u = sqrt(2/pi)(x + 0.044715 x^3)
    const float x2 = x * x;
    const float s = sigmoid<Exact>(1.595769122f * x * (1.0f + 0.044715f * x2));
    return {x * s, s + x * s * (1.0f - s) * 1.595769122f * (1.0f + 0.134145f * x2)};
  }
}

template <class T, Activation F>
struct Forward {
  static constexpr int kColumns = kVector<T>;
  static constexpr bool kExact = std::is_same_v<T, float>;
  Output<T> y;
  Input<T> gate, up;
  template <int V>
  __device__ void run(int64_t row, int64_t col) const {
    Floats<V> g = gate.template at<V>(row, col);
#pragma unroll
    for (int i = 0; i < V; ++i) g[i] = gate_of<F, kExact>(g[i]).value;
    if (up.exists()) {
      const Floats<V> u = up.template at<V>(row, col);
#pragma unroll
      for (int i = 0; i < V; ++i) g[i] *= u[i];
    }
    y.template set<V>(row, col, g);
  }
};

template <class T, Activation F>
struct Backward {
  static constexpr int kColumns = kVector<T>;
  static constexpr bool kExact = std::is_same_v<T, float>;
  Output<T> d_gate, d_up;
  Input<T> dy, gate, up;
  template <int V>
  __device__ void run(int64_t row, int64_t col) const {
    Floats<V> g = gate.template at<V>(row, col), d = dy.template at<V>(row, col), u;
    if (up.exists()) {
      u = up.template at<V>(row, col);
    } else {
#pragma unroll
      for (int i = 0; i < V; ++i) u[i] = 1;
    }
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const Gate a = gate_of<F, kExact>(g[i]);
      g[i] = d[i] * u[i] * a.slope;
      d[i] *= a.value;
    }
    d_gate.template set<V>(row, col, g);
    if (d_up.exists()) d_up.template set<V>(row, col, d);
  }
};

template <class F>
void with_activation(Activation f, F body) {
  switch (f) {
    case Activation::SILU:
      return body.template operator()<Activation::SILU>();
    case Activation::GELU:
      return body.template operator()<Activation::GELU>();
    case Activation::GELU_TANH:
      return body.template operator()<Activation::GELU_TANH>();
  }
}

// All operands have one type, F32 or BF16.
template <class F>
void with_type(DType t, F body) {
  if (t == DType::F32)
    body.template operator()<float>();
  else
    body.template operator()<bf16>();
}

}  // namespace

void gated_activation_forward(Stream& stream, Matrix y, ConstMatrix gate, ConstMatrix up,
                              Activation f) {
  join_rows(y, gate, up);
  with_type(gate.dtype, [&]<class T>() {
    with_activation(f, [&]<Activation A>() {
      using Op = Forward<T, A>;
      map(stream, Op{Output<T>(y), Input<T>(gate), Input<T>(up)}, y.rows, y.cols,
          vectors_fit(Op::kColumns, {y, gate, up}));
    });
  });
}

void gated_activation_backward(Stream& stream, Matrix d_gate, Matrix d_up, ConstMatrix dy,
                               ConstMatrix gate, ConstMatrix up, Activation f) {
  join_rows(d_gate, d_up, dy, gate, up);
  with_type(gate.dtype, [&]<class T>() {
    with_activation(f, [&]<Activation A>() {
      using Op = Backward<T, A>;
      map(stream,
          Op{Output<T>(d_gate), Output<T>(d_up), Input<T>(dy), Input<T>(gate), Input<T>(up)},
          dy.rows, dy.cols, vectors_fit(Op::kColumns, {d_gate, d_up, dy, gate, up}));
    });
  });
}

}  // namespace lorashard::cuda
