// Where an adapter's tensors lie: the one list of them, over which values are initialised, loaded
// and saved, moments are saved and resumed, replicas are compared and layers find their part.
//
// A flat buffer holds size() floats: every tensor whole and row-major, at its offset, on every rank
// of the world. Values, gradients and moments are flat buffers of one layout. Nothing here owns
// device memory.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/adapter.h"
#include "checkpoint/model_config.h"
#include "kernels/tensor.h"
#include "parallel/shard.h"

namespace lorashard {

struct AdapterTensor {
  size_t module = 0;  // index in AdapterLayout::modules
  AdapterTensorKind kind = AdapterTensorKind::LoraA;
  int64_t rows = 0, cols = 0;
  int64_t offset = 0;            // floats from the start of a flat buffer
  Range local_rows, local_cols;  // this rank's block: where its layer reads and adds gradients
  int64_t size() const { return rows * cols; }
};

// LoRA of one linear layer: h = W x + scaling B A x, A(lora_rank, in), B(out, lora_rank). Of a
// parameter of stacked experts, lora_rank is each expert's; in flat buffers A(experts lora_rank,
// in) and B(experts out, lora_rank) lie expert by expert, and their block is all of them: a rank's
// part is one of every expert's (trainer/model/experts.cpp).
struct LoraModule {
  LinearModule linear;
  int64_t lora_rank = 0;
  double alpha = 0;
  float scaling = 0;
  uint32_t site = 0;  // number of the module in the whole model, for the counter-based RNG
  AdapterTensor a = {}, b = {};  // row-parallel layers cut A by columns, the others cut B by rows
};

// Name, shapes and alpha as files have them; no values.
AdapterModule shapes_of(const LoraModule& m);

struct AdapterLayout {
  AdapterConfig config;                // for saving
  std::vector<LoraModule> modules;     // in the order of linear_modules(), which is that of files
  std::vector<AdapterTensor> tensors;  // in the order of flat buffers, no gap between them
  int64_t size = 0;                    // floats of a flat buffer
};

// Modules of one layer and InputGroup have their A tensors one after the other, so that one GEMM
// serves them all; their B tensors follow. REQUIRES: modules is a subset of linear_modules(model).
AdapterLayout adapter_layout(const ModelConfig& model, const std::vector<LinearModule>& modules,
                             const AdapterConfig& config, int tp_rank, int tp_size);

// This rank's block of a tensor within one of the flat buffers.
inline Matrix local_block(const AdapterTensor& t, float* flat) {
  return matrix(flat + t.offset, t.rows, t.cols, DType::F32)
      .block(t.local_rows.begin, t.local_rows.size(), t.local_cols.begin, t.local_cols.size());
}

}  // namespace lorashard
