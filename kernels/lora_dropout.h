// The GEMMs of a LoRA factor A with dropout on its input (Hu et al. 2021; PEFT's lora_dropout),
// forward and backward. dropout(x) is formed block by block where it is multiplied and never
// written to memory: what the three share is its mask, drawn anew each time.
//
// With D = the mask of dropout.h over (T,K), which is 1 / (1 - p) where an element is kept and 0
// elsewhere, dropout(x) = D * x element by element. x and dx are F32 or BF16; all others F32. On
// CUDA, A and t are rounded to bf16 where x or dx is BF16. Results do not depend on the number of
// threads.
#pragma once

#include "kernels/dropout.h"

namespace lorashard {

// u(T,r) = dropout(x)(T,K) a(r,K)^T.
void lora_dropout_forward(Stream& stream, Matrix u, ConstMatrix x, ConstMatrix a,
                          const DropoutMask& mask);

// da(r,K) += t(T,r)^T dropout(x)(T,K), t being the gradient of u.
void lora_dropout_wgrad(Stream& stream, Matrix da, ConstMatrix t, ConstMatrix x,
                        const DropoutMask& mask);

// dx(T,K) += D * (t(T,r) a(r,K)), element by element.
void lora_dropout_dgrad(Stream& stream, Matrix dx, ConstMatrix t, ConstMatrix a,
                        const DropoutMask& mask);

}  // namespace lorashard
