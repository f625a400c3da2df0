// The kernels' CUDA implementations. Contracts are those of the public headers (kernels/*.h); every
// pointer and matrix lies in device memory but where said otherwise, and calls enqueue and return.
// Errors: status 3, naming the call and the device.
#pragma once

#include <string>

#include "kernels/activation.h"
#include "kernels/adamw.h"
#include "kernels/attention.h"
#include "kernels/dequantize.h"
#include "kernels/dropout.h"
#include "kernels/preference.h"
#include "kernels/residual.h"
#include "kernels/stream.h"
#include "kernels/tensor.h"

namespace lorashard::cuda {

// Devices that answer; 0 without a driver.
int device_count();
std::string device_name(int device);

// stream.cpp, transfer.cpp
CudaStream* create_stream(int device);
void destroy_stream(CudaStream* stream);
void synchronize(Stream& stream);
size_t available_bytes(const CudaStream& stream);
void* allocate(Stream& stream, size_t bytes);
void release(Stream& stream, void* memory);
void copy_to_device(Stream& stream, void* device, const void* host, int64_t bytes);
void copy_to_host(Stream& stream, void* host, const void* device, int64_t bytes);
void copy_matrix_to_device(Stream& stream, Matrix device, ConstMatrix host);
void* create_staging(Stream& stream, int64_t capacity);
void destroy_staging(Stream& stream, void* staging);
const void* stage(Stream& stream, void* staging, const void* host, int64_t bytes);

// matmul.cpp (cuBLASLt)
void matmul_nt(Stream& stream, Matrix y, ConstMatrix x, ConstMatrix w, float alpha, float beta);
void matmul_nt_bias(Stream& stream, Matrix y, ConstMatrix x, ConstMatrix w, ConstMatrix bias);
void matmul_nn_bias(Stream& stream, Matrix y, ConstMatrix x, ConstMatrix w, ConstMatrix bias);
void matmul_nn(Stream& stream, Matrix y, ConstMatrix x, ConstMatrix w, float alpha, float beta);
void matmul_tn(Stream& stream, Matrix y, ConstMatrix a, ConstMatrix b, float alpha, float beta);

// attention.cpp chooses between attention_cudnn.cpp and attention_*.cu
void attention_forward(Stream& stream, Matrix o, Matrix lse, ConstMatrix q, ConstMatrix k,
                       ConstMatrix v, const Sequences& sequences, const AttentionShape& shape);
void attention_backward(Stream& stream, Matrix dq, Matrix dk, Matrix dv, ConstMatrix d_o,
                        ConstMatrix q, ConstMatrix k, ConstMatrix v, ConstMatrix o, ConstMatrix lse,
                        const Sequences& sequences, const AttentionShape& shape);

void prepare_attention(Stream& stream, DType type, const AttentionShape& shape, int64_t sequences,
                       int64_t length);
std::string attention_choice(Stream& stream, DType type, const AttentionShape& shape,
                             int64_t sequences, int64_t length);

// elementwise.cu
void convert(Stream& stream, Matrix y, ConstMatrix x);
void fill_zero(Stream& stream, Matrix y);
void add(Stream& stream, Matrix y, ConstMatrix a, ConstMatrix b);
void add_bias(Stream& stream, Matrix y, ConstMatrix bias);
void scale(Stream& stream, Matrix y, float factor);

// columns.cu
void add_column_sums(Stream& stream, Matrix sums, ConstMatrix x, ConstMatrix y);
void scale_columns(Stream& stream, Matrix y, ConstMatrix x, ConstMatrix factors, bool accumulate);

// dora.cu
void row_squares(Stream& stream, Matrix squares, ConstMatrix w);
void dora_squares(Stream& stream, Matrix squares, ConstMatrix base, ConstMatrix p, ConstMatrix b,
                  ConstMatrix gram, float scaling);
void dora_scales(Stream& stream, Matrix scale, Matrix excess, Matrix inverse_norm,
                 ConstMatrix squares, ConstMatrix magnitude);

// rms_norm.cu, layer_norm.cu, rope.cu, activation.cu, embedding.cu (look-up and rows), dropout.cu
void rms_norm_forward(Stream& stream, Matrix y, Matrix rstd, ConstMatrix x, ConstMatrix gain,
                      float eps, float gain_offset, const ResidualAdd& add);
void rms_norm_backward(Stream& stream, Matrix dx, ConstMatrix dy, ConstMatrix x, ConstMatrix rstd,
                       ConstMatrix gain, float gain_offset, bool accumulate);
void rms_norm_gain_backward(Stream& stream, Matrix d_gain, ConstMatrix dy, ConstMatrix x,
                            ConstMatrix rstd);
void layer_norm_forward(Stream& stream, Matrix y, Matrix mean_rstd, ConstMatrix x, ConstMatrix gain,
                        ConstMatrix bias, float eps, const ResidualAdd& add);
void layer_norm_backward(Stream& stream, Matrix dx, ConstMatrix dy, ConstMatrix x,
                         ConstMatrix mean_rstd, ConstMatrix gain, bool accumulate);
void rope(Stream& stream, Matrix x, int64_t heads, const int32_t* positions, ConstMatrix cos_sin,
          bool inverse);
void gated_activation_forward(Stream& stream, Matrix y, ConstMatrix gate, ConstMatrix up,
                              Activation f);
void gated_activation_backward(Stream& stream, Matrix d_gate, Matrix d_up, ConstMatrix dy,
                               ConstMatrix gate, ConstMatrix up, Activation f);
void embedding_forward(Stream& stream, Matrix y, const int32_t* ids, ConstMatrix table,
                       int64_t first_row, float factor);
void embedding_backward(Stream& stream, Matrix d_table, const int32_t* ids, ConstMatrix dy,
                        int64_t first_row, float factor);
void gather_rows(Stream& stream, Matrix y, ConstMatrix x, const int32_t* rows);
void scatter_rows(Stream& stream, Matrix y, ConstMatrix x, const int32_t* rows);
void put_columns(Stream& stream, Matrix y, ConstMatrix x, const int32_t* cols, int64_t first_col);
void take_columns(Stream& stream, Matrix x, Matrix y, const int32_t* cols, int64_t first_col);
void dropout(Stream& stream, Matrix y, ConstMatrix x, uint64_t seed, uint32_t site,
             const uint64_t* row_keys, int64_t first_col, float p, bool accumulate);

// lora_dropout.cu, lora_dropout_f32.cu
void lora_dropout_forward(Stream& stream, Matrix u, ConstMatrix x, ConstMatrix a,
                          const DropoutMask& mask);
void lora_dropout_wgrad(Stream& stream, Matrix da, ConstMatrix t, ConstMatrix x,
                        const DropoutMask& mask);
void lora_dropout_dgrad(Stream& stream, Matrix dx, ConstMatrix t, ConstMatrix a,
                        const DropoutMask& mask);

// cross_entropy.cu
void cross_entropy_stats(Stream& stream, Matrix stats, ConstMatrix logits, const int32_t* labels,
                         int64_t first);
void cross_entropy_gradient(Stream& stream, Matrix logits, const float* lse, const int32_t* labels,
                            int64_t first, float factor, const float* row_factors);
void cross_entropy_combine(Stream& stream, float* lse, double* loss, ConstMatrix stats, int ranks,
                           double* row_losses);

// preference.cu
void sequence_logps(Stream& stream, double* logps, const double* losses, const int32_t* rows,
                    int64_t sequences);
void preference_loss(Stream& stream, float* factors, LossTotals* totals, const double* policy,
                     const double* reference, const int32_t* rows, int64_t pairs, double beta);

// adamw.cu
void adamw(Stream& stream, float* p, float* m, float* v, const float* g, int64_t n,
           const AdamWStep& step);
void sum_of_squares(Stream& stream, double* sum, const float* x, int64_t n);
void split_double(Stream& stream, float* high, float* low, const double* x);

// dequantize.cu
void dequantize_nf4(Stream& stream, Matrix y, const Nf4Matrix& w);
void dequantize_int8(Stream& stream, Matrix y, ConstMatrix codes, const float* scales);

}  // namespace lorashard::cuda
