// DoRA's weight norms (Liu et al. 2024): those of the rows of W + scaling B A, from thin products.
// With P = A W^T and G = A A^T,
//   ||(W + scaling B A)_j||^2 = ||W_j||^2 + 2 scaling B_j P_j + scaling^2 B_j G B_j^T,
// so that an update of A and B costs r(N + r) K multiplications and no pass over B A. Sums are
// formed in double; relative to ||W_j||^2 + ||scaling (B A)_j||^2 the error is that of P and G,
// fp32 GEMMs. A rank that holds some of W's columns gets its part of each sum.
#pragma once

#include "kernels/stream.h"
#include "kernels/tensor.h"

namespace lorashard {

// squares(1,N) = sum over k of w(n,k)^2. w(N,K): any storage type; squares: F32.
void row_squares(Stream& stream, Matrix squares, ConstMatrix w);

// squares(1,N) = base(1,N) + 2 scaling b_n p_n + scaling^2 b_n gram b_n^T, where p_n is column n of
// p(R,N), b_n row n of b(N,R), gram(R,R). All F32.
void dora_squares(Stream& stream, Matrix squares, ConstMatrix base, ConstMatrix p, ConstMatrix b,
                  ConstMatrix gram, float scaling);

// What a layer's outputs are multiplied by: inverse_norm = 1 / sqrt(squares), scale = magnitude *
// inverse_norm, excess = scale - 1. All (1,N) F32.
void dora_scales(Stream& stream, Matrix scale, Matrix excess, Matrix inverse_norm,
                 ConstMatrix squares, ConstMatrix magnitude);

}  // namespace lorashard
