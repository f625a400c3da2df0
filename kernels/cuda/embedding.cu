// Look-ups and copies of whole rows.
#include "kernels/embedding.h"

#include "kernels/cuda/kernels.h"
#include "kernels/cuda/map_rows.h"
#include "kernels/rows.h"

namespace lorashard::cuda {
namespace {

template <class T>
struct LookUp {
  static constexpr int kColumns = kVector<T>;
  Output<T> y;
  Input<Any> table;
  const int32_t* ids;
  int64_t first_row, table_rows;
  float factor;
  template <int V>
  __device__ void run(int64_t row, int64_t col) const {
    const int64_t from = ids[row] - first_row;
    Floats<V> x;
    if (from >= 0 && from < table_rows) {
      x = table.at<V>(from, col);
#pragma unroll
      for (int i = 0; i < V; ++i) x[i] *= factor;
    } else {
#pragma unroll
      for (int i = 0; i < V; ++i) x[i] = 0;
    }
    y.template set<V>(row, col, x);
  }
};

// Row r of one matrix to row r of the other, where `rows` says which row of the indexed one that
// is. T is any type of the elements' size.
template <class T, bool Scatter>
struct CopyRows {
  static constexpr int kColumns = 16 / int(sizeof(T));
  T* y;
  const T* x;
  int64_t ldy, ldx;
  const int32_t* rows;
  template <int V>
  __device__ void run(int64_t row, int64_t col) const {
    const int64_t other = rows[row], to = Scatter ? other : row, from = Scatter ? row : other;
    *reinterpret_cast<Pack<T, V>*>(y + to * ldy + col) =
        *reinterpret_cast<const Pack<T, V>*>(x + from * ldx + col);
  }
};

template <class T, bool Scatter>
void copy_rows_as(Stream& stream, Matrix y, ConstMatrix x, const int32_t* rows, int64_t count) {
  using Op = CopyRows<T, Scatter>;
  map(stream, Op{static_cast<T*>(y.data), static_cast<const T*>(x.data), y.ld, x.ld, rows}, count,
      y.cols, vectors_fit(Op::kColumns, {y, x}));
}

template <bool Scatter>
void copy_rows(Stream& stream, Matrix y, ConstMatrix x, const int32_t* rows, int64_t count) {
  switch (size_of(y.dtype)) {
    case 1:
      return copy_rows_as<uint8_t, Scatter>(stream, y, x, rows, count);
    case 2:
      return copy_rows_as<uint16_t, Scatter>(stream, y, x, rows, count);
    case 4:
      return copy_rows_as<uint32_t, Scatter>(stream, y, x, rows, count);
    case 8:
      return copy_rows_as<uint64_t, Scatter>(stream, y, x, rows, count);
  }
}

}  // namespace

void embedding_forward(Stream& stream, Matrix y, const int32_t* ids, ConstMatrix table,
                       int64_t first_row, float factor) {
  with_common_type({y.dtype}, [&]<class T>() {
    using Op = LookUp<T>;
    map(stream, Op{Output<T>(y), Input<Any>(table), ids, first_row, table.rows, factor}, y.rows,
        y.cols, vectors_fit(Op::kColumns, {y, table}));
  });
}

void gather_rows(Stream& stream, Matrix y, ConstMatrix x, const int32_t* rows) {
  copy_rows<false>(stream, y, x, rows, y.rows);
}

void scatter_rows(Stream& stream, Matrix y, ConstMatrix x, const int32_t* rows) {
  fill_zero(stream, y);
  copy_rows<true>(stream, y, x, rows, x.rows);
}

}  // namespace lorashard::cuda
