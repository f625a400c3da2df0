// Where a rank keeps the weights that full fine-tuning trains: the one list of them, over which
// weights are loaded and saved, gradients reduced, moments resumed and replicas compared.
//
// A flat buffer has two sections of elements, each a number of equal slices, with every tensor
// contiguous and row-major at an aligned offset and zeros between:
//   own:    tensors that the tensor-parallel ranks cut between them; the same on all replicas. Cut
//           in one slice for each data-parallel rank.
//   shared: tensors of which several tensor-parallel ranks hold the same elements (norms, key/value
//           heads at a degree above their number): whole, on all ranks. Cut in one slice for each
//           rank of the job.
// The rank of a slice owns its elements: it alone has their moments and updates them.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "checkpoint/model_config.h"
#include "kernels/tensor.h"
#include "parallel/shard.h"

namespace lorashard {

enum class WeightSectionKind : uint8_t { Own, Shared };

struct WeightTensor {
  TensorSpec spec;
  TensorPart part;  // this rank's: what its layers read
  TensorPart held;  // what lies in the flat buffer: the part, or the whole of a shared tensor
  WeightSectionKind section = WeightSectionKind::Own;
  int64_t offset = 0;  // elements from the start of the flat buffer
  // Whether this rank adds to its gradient. Where all ranks of a tensor-parallel group form the
  // same whole gradient (of the residual's norms and biases), the first of them alone does.
  bool adds_gradient = true;
  int64_t held_rows() const { return held.row_end - held.row_begin; }
  int64_t held_cols() const { return held.col_end - held.col_begin; }
};

struct WeightSection {
  int64_t begin = 0, size = 0;  // elements of the flat buffer
  int64_t vectors = 0;          // where the vectors begin, behind the matrices
  int slices = 1;
  Range slice(int i) const { return {begin + size / slices * i, begin + size / slices * (i + 1)}; }
};

struct WeightLayout {
  std::vector<WeightTensor> tensors;  // in the order of model_tensors()
  EnumArray<WeightSectionKind, 2, WeightSection> sections;
  int64_t size = 0;  // elements of the flat buffer
};

WeightLayout weight_layout(const ModelConfig& config, int tp_rank, int tp_size, int dp_size);

// This rank's part of a tensor in a flat buffer of elements `type`.
Matrix part_of(const WeightTensor& t, void* flat, DType type);

}  // namespace lorashard
