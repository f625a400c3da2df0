// Look-ups, their gradient, and copies of whole rows or columns.
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

constexpr int kRowThreads = 128;

// What a warp adds to one row of the table, V columns a lane from `col`; lanes that are not
// `active` only vote.
template <int V, class T>
__device__ __forceinline__ void add_tokens(float* row, const Input<T>& dy, const int32_t* ids,
                                           int64_t token, int64_t tokens, int64_t col, bool active,
                                           float factor) {
  const int32_t id = ids[token];
  const int lane = int(threadIdx.x % 32);
  Floats<V> sum;
  if (active) sum = load<V>(static_cast<const float*>(row) + col);
#pragma unroll 1
  for (int64_t begin = token / 32 * 32; begin < tokens; begin += 32) {
    const int64_t mine = begin + lane;
    unsigned votes = __ballot_sync(0xffffffffu, mine >= token && mine < tokens && ids[mine] == id);
    while (votes != 0) {
      const int64_t t = begin + __ffs(int(votes)) - 1;
      votes &= votes - 1;
      if (!active) continue;
      const Floats<V> x = dy.template at<V>(t, col);
#pragma unroll
      for (int i = 0; i < V; ++i) sum[i] = fmaf(factor, x[i], sum[i]);
    }
  }
  if (active) store<V>(row + col, sum);
}

// A warp takes columns of the row of one token, unless an earlier token has the same row: the first
// of them adds all in their order, so that no two warps write to one place.
template <class T>
__global__ void __launch_bounds__(kRowThreads)
    embedding_backward_kernel(float* table, int64_t ld_table, Input<T> dy, const int32_t* ids,
                              int64_t tokens, int64_t first_row, int64_t table_rows, int64_t cols,
                              int64_t vectors, float factor) {
  const int64_t token = blockIdx.x;
  const int64_t row = ids[token] - first_row;
  if (row < 0 || row >= table_rows) return;
  const int lane = int(threadIdx.x % 32);
#pragma unroll 1
  for (int64_t begin = 0; begin < token; begin += 32) {
    const int64_t earlier = begin + lane;
    if (__any_sync(0xffffffffu, earlier < token && ids[earlier] == ids[token])) return;
  }
  const int64_t u = int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  float* to = table + row * ld_table;
  if (vectors > 0)
    add_tokens<kVector<T>>(to, dy, ids, token, tokens, u * kVector<T>, u < vectors, factor);
  const int64_t col = vectors * kVector<T> + u;
  if (vectors * kVector<T> < cols)
    add_tokens<1>(to, dy, ids, token, tokens, col, col < cols, factor);
}

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

// Few columns: reads and writes far apart are no loss.
template <bool Put>
struct MoveColumns {
  static constexpr int kColumns = 1;
  float *x, *y;
  int64_t ldx, ldy, y_cols;
  const int32_t* cols;
  int64_t first_col;
  template <int V>
  __device__ void run(int64_t row, int64_t k) const {
    const int64_t c = cols[k] - first_col;
    const bool here = c >= 0 && c < y_cols;
    float *one = x + row * ldx + k, *other = y + row * ldy + c;
    if (Put) {
      if (here) *other = *one;
    } else {
      *one = here ? *other : 0.0f;
      if (here) *other = 0.0f;
    }
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

void embedding_backward(Stream& stream, Matrix d_table, const int32_t* ids, ConstMatrix dy,
                        int64_t first_row, float factor) {
  if (dy.rows == 0 || dy.cols == 0) return;
  with_common_type({dy.dtype}, [&]<class T>() {
    const int64_t vectors = vectors_fit(kVector<T>, {d_table, dy}) ? dy.cols / kVector<T> : 0;
    const int64_t units = std::max(vectors, dy.cols - vectors * kVector<T>);
    LORASHARD_CUDA_CHECK(launch(
        embedding_backward_kernel<T>,
        dim3(unsigned(dy.rows), unsigned((units + kRowThreads - 1) / kRowThreads)),
        dim3(kRowThreads), 0, stream_of(stream), static_cast<float*>(d_table.data), d_table.ld,
        Input<T>(dy), ids, dy.rows, first_row, d_table.rows, dy.cols, vectors, factor));
  });
}

void gather_rows(Stream& stream, Matrix y, ConstMatrix x, const int32_t* rows) {
  copy_rows<false>(stream, y, x, rows, y.rows);
}

void scatter_rows(Stream& stream, Matrix y, ConstMatrix x, const int32_t* rows) {
  fill_zero(stream, y);
  copy_rows<true>(stream, y, x, rows, x.rows);
}

void put_columns(Stream& stream, Matrix y, ConstMatrix x, const int32_t* cols, int64_t first_col) {
  auto* from = const_cast<float*>(static_cast<const float*>(x.data));  // read only
  map(stream,
      MoveColumns<true>{from, static_cast<float*>(y.data), x.ld, y.ld, y.cols, cols, first_col},
      x.rows, x.cols, false);
}

void take_columns(Stream& stream, Matrix x, Matrix y, const int32_t* cols, int64_t first_col) {
  map(stream,
      MoveColumns<false>{static_cast<float*>(x.data), static_cast<float*>(y.data), x.ld, y.ld,
                         y.cols, cols, first_col},
      x.rows, x.cols, false);
}

}  // namespace lorashard::cuda
