#include "trainer/model/frozen_weight.h"

#include "kernels/dora.h"
#include "kernels/embedding.h"
#include "kernels/matmul.h"

namespace lorashard {

void frozen_forward(Stream& stream, Matrix y, ConstMatrix x, const FrozenWeight& w,
                    ConstMatrix bias) {
  if (w.transposed && bias)
    matmul_nn_bias(stream, y, x, w.matrix, bias);
  else if (w.transposed)
    matmul_nn(stream, y, x, w.matrix);
  else if (bias)
    matmul_nt_bias(stream, y, x, w.matrix, bias);
  else
    matmul_nt(stream, y, x, w.matrix);
}

void frozen_backward(Stream& stream, Matrix dx, ConstMatrix dy, const FrozenWeight& w, float beta) {
  if (w.transposed)
    matmul_nt(stream, dx, dy, w.matrix, 1, beta);
  else
    matmul_nn(stream, dx, dy, w.matrix, 1, beta);
}

void frozen_row_squares(Stream& stream, Matrix squares, const FrozenWeight& w) {
  row_squares(stream, squares, w.matrix);
}

void frozen_rows(Stream& stream, Matrix y, const int32_t* ids, const FrozenWeight& w,
                 int64_t first_row, float scale) {
  embedding_forward(stream, y, ids, w.matrix, first_row, scale);
}

}  // namespace lorashard
