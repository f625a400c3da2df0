// What train, eval and generate share.
#pragma once

#include "checkpoint/adapter.h"
#include "configs/config.h"
#include "parallel/mesh.h"
#include "trainer/lora.h"

namespace lorashard {

// That parallel.tensor does not exceed the query heads; Error (status 2).
void check_tensor_degree(const Config& config, const ModelConfig& model);

// The factors of an adapter that was read, with its values. REQUIRES: it fits the model.
Factors factors_of(Stream& stream, const ModelConfig& model, const Adapter& adapter,
                   const Mesh& mesh, int64_t tail = 0);

}  // namespace lorashard
