// The table of the target being compiled. Included last by each target_*.cpp.

namespace lorashard::LORASHARD_TARGET {

const CpuKernels& table() {
  static constexpr CpuKernels kernels = {
      .name = LORASHARD_TARGET_NAME,
      .lanes = W,
      .convert = convert,
      .add = add,
      .scale = scale,
      .scale_add = scale_add,
      .rms_norm_forward = rms_norm_forward,
      .rms_norm_backward = rms_norm_backward,
      .layer_norm_forward = layer_norm_forward,
      .layer_norm_backward = layer_norm_backward,
      .rope = rope,
      .activation_forward = activation_forward,
      .activation_backward = activation_backward,
      .dropout = dropout,
      .dot_rows = dot_rows,
      .block_gemm = any_block_gemm,
      .row_max_sum = row_max_sum,
      .softmax_gradient = softmax_gradient,
      .adamw = adamw,
      .sum_of_squares = sum_of_squares,
      .attention_forward = attention_forward,
      .attention_backward = attention_backward,
  };
  return kernels;
}

}  // namespace lorashard::LORASHARD_TARGET
