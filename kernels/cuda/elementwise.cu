#include "kernels/cuda/kernels.h"
#include "kernels/cuda/map_rows.h"

namespace lorashard::cuda {
namespace {

template <class Y, class X>
struct Convert {
  static constexpr int kColumns = std::min(kVector<Y>, kVector<X>);
  Output<Y> y;
  Input<X> x;
  template <int V>
  __device__ void run(int64_t row, int64_t col) const {
    y.template set<V>(row, col, x.template at<V>(row, col));
  }
};

// y = a + b, b possibly the same row for all.
template <class T, class B, bool OneRow>
struct Add {
  static constexpr int kColumns = std::min(kVector<T>, kVector<B>);
  Output<T> y;
  Input<T> a;
  Input<B> b;
  template <int V>
  __device__ void run(int64_t row, int64_t col) const {
    Floats<V> s = a.template at<V>(row, col);
    const Floats<V> t = b.template at<V>(OneRow ? 0 : row, col);
#pragma unroll
    for (int i = 0; i < V; ++i) s[i] += t[i];
    y.template set<V>(row, col, s);
  }
};

template <class T>
struct Scale {
  static constexpr int kColumns = kVector<T>;
  Output<T> y;
  float factor;
  template <int V>
  __device__ void run(int64_t row, int64_t col) const {
    Floats<V> x = y.template at<V>(row, col);
#pragma unroll
    for (int i = 0; i < V; ++i) x[i] *= factor;
    y.template set<V>(row, col, x);
  }
};

// Zero bytes; only rows with gaps between them need a kernel.
struct Zero {
  static constexpr int kColumns = 16;
  unsigned char* data;
  int64_t ld;
  template <int V>
  __device__ void run(int64_t row, int64_t col) const {
    *reinterpret_cast<Pack<unsigned char, V>*>(data + row * ld + col) = {};
  }
};

}  // namespace

void convert(Stream& stream, Matrix y, ConstMatrix x) {
  join_rows(y, x);
  with_storage_type(y.dtype, [&]<class Y>() {
    with_storage_type(x.dtype, [&]<class X>() {
      using Op = Convert<Y, X>;
      map(stream, Op{Output<Y>(y), Input<X>(x)}, y.rows, y.cols, vectors_fit(Op::kColumns, {y, x}));
    });
  });
}

void fill_zero(Stream& stream, Matrix y) {
  join_rows(y);
  const int64_t size = size_of(y.dtype), bytes = y.cols * size;
  if (y.rows == 0 || bytes == 0) return;
  if (y.rows == 1) {
    LORASHARD_CUDA_CHECK(cudaMemsetAsync(y.data, 0, size_t(bytes), stream_of(stream)));
    return;
  }
  const Matrix raw{y.data, y.rows, bytes, y.ld * size, DType::U8};
  map(stream, Zero{static_cast<unsigned char*>(raw.data), raw.ld}, raw.rows, raw.cols,
      vectors_fit(Zero::kColumns, {raw}));
}

void add(Stream& stream, Matrix y, ConstMatrix a, ConstMatrix b) {
  join_rows(y, a, b);
  with_common_type({y.dtype, a.dtype, b.dtype}, [&]<class T>() {
    using Op = Add<T, T, false>;
    map(stream, Op{Output<T>(y), Input<T>(a), Input<T>(b)}, y.rows, y.cols,
        vectors_fit(Op::kColumns, {y, a, b}));
  });
}

void add_bias(Stream& stream, Matrix y, ConstMatrix bias) {
  with_common_type({y.dtype}, [&]<class T>() {
    using Op = Add<T, Any, true>;
    map(stream, Op{Output<T>(y), Input<T>(y), Input<Any>(bias)}, y.rows, y.cols,
        vectors_fit(Op::kColumns, {y, bias}));
  });
}

void scale(Stream& stream, Matrix y, float factor) {
  join_rows(y);
  with_common_type({y.dtype}, [&]<class T>() {
    using Op = Scale<T>;
    map(stream, Op{Output<T>(y), factor}, y.rows, y.cols, vectors_fit(Op::kColumns, {y}));
  });
}

}  // namespace lorashard::cuda
