// The CPU inner loops for AVX-512 F, BW, DQ and VL.
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels/cpu/attention_task.h"
#include "kernels/cpu/table.h"
#include "kernels/float_types.h"
#include "kernels/random.h"

#if defined(__clang__)
#pragma clang attribute push(                                                    \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif
#define LORASHARD_TARGET_AVX512
#define LORASHARD_TARGET avx512
#define LORASHARD_TARGET_NAME "avx512"

// The order matters.
// clang-format off
#include "kernels/cpu/simd.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/blocks.h"
#include "kernels/cpu/attention_blocks.h"
#include "kernels/cpu/fill_table.h"
// clang-format on

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif  // __x86_64__
