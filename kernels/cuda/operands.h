// How kernels read and write matrices: V neighbouring elements of a row at a time, as floats.
//
// An operand's element type is a template argument: float, bf16, f16, or Any where the type is
// known at run time only. A kernel whose activations all have one type is compiled for that type;
// every mixture runs the Any version, whose test of the type is the same for all threads.
#pragma once

#include <initializer_list>

#include "kernels/cuda/portable.h"
#include "kernels/tensor.h"

namespace lorashard::cuda {

struct Any {};

// Elements in a 16-byte access. Any: 16 bytes of F32, 8 of the others.
template <class T>
inline constexpr int kVector = 16 / int(sizeof(T));
template <>
inline constexpr int kVector<Any> = 4;

template <int V>
struct Floats {
  float v[V];
  __device__ __forceinline__ float& operator[](int i) { return v[i]; }
  __device__ __forceinline__ float operator[](int i) const { return v[i]; }
};

// V elements that lie side by side and are moved by the widest access their alignment allows.
template <class T, int V>
struct alignas(sizeof(T) * V > 16 ? 16 : sizeof(T) * V) Pack {
  T e[V];
};

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(f16 x) { return __half2float(x); }

template <int V, class T>
__device__ __forceinline__ Floats<V> load(const T* p) {
  const auto pack = *reinterpret_cast<const Pack<T, V>*>(p);
  Floats<V> x;
#pragma unroll
  for (int i = 0; i < V; ++i) x[i] = to_float(pack.e[i]);
  return x;
}

template <int V>
__device__ __forceinline__ void store(float* p, const Floats<V>& x) {
  Pack<float, V> pack;
#pragma unroll
  for (int i = 0; i < V; ++i) pack.e[i] = x[i];
  *reinterpret_cast<Pack<float, V>*>(p) = pack;
}

// Two at a time, for which there is one instruction.
template <int V>
__device__ __forceinline__ void store(bf16* p, const Floats<V>& x) {
  if constexpr (V == 1) {
    *p = __float2bfloat16_rn(x[0]);
  } else {
    Pack<__nv_bfloat162, V / 2> pack;
#pragma unroll
    for (int i = 0; i < V / 2; ++i) pack.e[i] = __floats2bfloat162_rn(x[2 * i], x[2 * i + 1]);
    *reinterpret_cast<Pack<__nv_bfloat162, V / 2>*>(p) = pack;
  }
}
template <int V>
__device__ __forceinline__ void store(f16* p, const Floats<V>& x) {
  Pack<f16, V> pack;
#pragma unroll
  for (int i = 0; i < V; ++i) pack.e[i] = __float2half_rn(x[i]);
  *reinterpret_cast<Pack<f16, V>*>(p) = pack;
}

// A matrix that a kernel reads. No __restrict__: the contracts let outputs alias inputs.
template <class T>
struct Input {
  const T* data;
  int64_t ld;
  explicit Input(ConstMatrix m) : data(static_cast<const T*>(m.data)), ld(m.ld) {}
  __device__ __forceinline__ bool exists() const { return data != nullptr; }
  template <int V>
  __device__ __forceinline__ Floats<V> at(int64_t row, int64_t col) const {
    return load<V>(data + row * ld + col);
  }
};

template <>
struct Input<Any> {
  const void* data;
  int64_t ld;
  DType type;
  explicit Input(ConstMatrix m) : data(m.data), ld(m.ld), type(m.dtype) {}
  __device__ __forceinline__ bool exists() const { return data != nullptr; }
  template <int V>
  __device__ __forceinline__ Floats<V> at(int64_t row, int64_t col) const {
    const int64_t i = row * ld + col;
    if (type == DType::F32) return load<V>(static_cast<const float*>(data) + i);
    if (type == DType::BF16) return load<V>(static_cast<const bf16*>(data) + i);
    return load<V>(static_cast<const f16*>(data) + i);
  }
};

// A matrix that a kernel writes, and may read.
template <class T>
struct Output : Input<T> {
  explicit Output(Matrix m) : Input<T>(m) {}
  template <int V>
  __device__ __forceinline__ void set(int64_t row, int64_t col, const Floats<V>& x) const {
    store<V>(const_cast<T*>(this->data) + row * this->ld + col, x);
  }
};

template <>
struct Output<Any> : Input<Any> {
  explicit Output(Matrix m) : Input<Any>(m) {}
  template <int V>
  __device__ __forceinline__ void set(int64_t row, int64_t col, const Floats<V>& x) const {
    const int64_t i = row * ld + col;
    void* p = const_cast<void*>(data);
    if (type == DType::F32)
      store<V>(static_cast<float*>(p) + i, x);
    else if (type == DType::BF16)
      store<V>(static_cast<bf16*>(p) + i, x);
    else
      store<V>(static_cast<f16*>(p) + i, x);
  }
};

// y(row, col...) = or += x.
template <int V, class Y>
__device__ __forceinline__ void set_or_add(const Y& y, int64_t row, int64_t col, Floats<V> x,
                                           bool accumulate) {
  if (accumulate) {
    const Floats<V> before = y.template at<V>(row, col);
#pragma unroll
    for (int i = 0; i < V; ++i) x[i] += before[i];
  }
  y.template set<V>(row, col, x);
}

// Calls f.template operator()<T>() with the type that all activations have, or Any.
template <class F>
void with_common_type(std::initializer_list<DType> types, F f) {
  bool all_f32 = true, all_bf16 = true;
  for (DType t : types) {
    all_f32 = all_f32 && t == DType::F32;
    all_bf16 = all_bf16 && t == DType::BF16;
  }
  if (all_f32)
    f.template operator()<float>();
  else if (all_bf16)
    f.template operator()<bf16>();
  else
    f.template operator()<Any>();
}

// Calls it with the type of one matrix.
template <class F>
void with_storage_type(DType t, F f) {
  if (t == DType::F32)
    f.template operator()<float>();
  else if (t == DType::BF16)
    f.template operator()<bf16>();
  else
    f.template operator()<f16>();
}

// Whether v elements at a column that is a multiple of v can be moved by one access in each matrix.
// Empty matrices do not count.
inline bool vectors_fit(int v, std::initializer_list<ConstMatrix> matrices) {
  for (const ConstMatrix& m : matrices) {
    if (!m) continue;
    const int64_t wide = v * size_of(m.dtype), unit = wide > 16 ? 16 : wide;
    if (int64_t(reinterpret_cast<uintptr_t>(m.data)) % unit != 0) return false;
    if (m.rows > 1 && m.ld * size_of(m.dtype) % unit != 0) return false;
  }
  return true;
}

}  // namespace lorashard::cuda
