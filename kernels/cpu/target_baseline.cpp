// The CPU inner loops for what every processor of the architecture has.
#include "kernels/cpu/attention_task.h"
#include "kernels/cpu/table.h"
#include "kernels/float_types.h"
#include "kernels/random.h"

#define LORASHARD_TARGET baseline
#define LORASHARD_TARGET_NAME "baseline"

// The order matters.
// clang-format off
#include "kernels/cpu/simd.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/blocks.h"
#include "kernels/cpu/attention_blocks.h"
#include "kernels/cpu/fill_table.h"
// clang-format on
