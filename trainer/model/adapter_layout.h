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
  AdapterTensorKind kind = AdapterTensorKind::LoraA;
  size_t index = 0;  // in AdapterLayout::modules; of kind Base in AdapterLayout::trained
  int64_t rows = 0, cols = 0;
  int64_t offset = 0;  // floats from the start of a flat buffer
  // This rank's block, where its layer reads and adds gradients; of a fused module three: of a
  // dimension that is cut in pieces (q, k, v) the range of each, else one.
  std::vector<Range> local_rows, local_cols;
  // Of a vector in one piece, the part of the block that this rank answers for: over the
  // tensor-parallel group the shares are the whole vector once, also where blocks overlap. Ranks
  // that would all form the gradient of the whole (of a bias behind the all-reduce) add that of
  // their share.
  Range share = {0, 0};
  int64_t size() const { return rows * cols; }
};

// LoRA of one linear layer: h = W x + scaling B A x, A(lora_rank, in), B(out, lora_rank).
struct LoraModule {
  LinearModule linear;
  int64_t lora_rank = 0;
  double alpha = 0;
  float scaling = 0;
  bool dora = false;
  uint32_t site = 0;  // number of the module in the whole model, for the counter-based RNG
  AdapterTensor a = {}, b = {};  // row-parallel layers cut A by columns, the others cut B by rows
  AdapterTensor magnitude = {};  // with DoRA: cut as B's rows are
};

// Name, shapes and alpha as files have them; no values.
AdapterModule shapes_of(const LoraModule& m);

struct AdapterLayout {
  AdapterConfig config;                // for saving
  std::vector<LoraModule> modules;     // in the order of lora_modules(), which is that of files
  std::vector<TrainedTensor> trained;  // trained_tensors() of the model, without values
  std::vector<AdapterTensor> tensors;  // in the order of flat buffers, no gap between them
  int64_t size = 0;                    // floats of a flat buffer

  // What a tensor belongs to, for messages: a module, or a tensor of the base.
  const std::string& owner(const AdapterTensor& t) const;
};

// All A tensors come first: those of one layer and InputGroup one after the other, so that one GEMM
// serves them. All B tensors follow, so that AdamW goes over each kind at once, and then the
// trained tensors. REQUIRES: modules is a subset of lora_modules(model).
AdapterLayout adapter_layout(const ModelConfig& model, const std::vector<LinearModule>& modules,
                             const AdapterConfig& config, int tp_rank, int tp_size);

// This rank's block of a tensor within one of the flat buffers, of a piece if it is cut in several.
inline Matrix local_block(const AdapterTensor& t, float* flat, size_t piece = 0) {
  const Range rows = t.local_rows.at(t.local_rows.size() > 1 ? piece : 0);
  const Range cols = t.local_cols.at(t.local_cols.size() > 1 ? piece : 0);
  return matrix(flat + t.offset, t.rows, t.cols, DType::F32)
      .block(rows.begin, rows.size(), cols.begin, cols.size());
}

// The part of a vector's block that is this rank's share.
inline Matrix share_of(const AdapterTensor& t, float* flat) {
  return matrix(flat + t.offset, 1, t.cols, DType::F32).col_range(t.share.begin, t.share.size());
}

}  // namespace lorashard
