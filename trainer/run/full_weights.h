// Full fine-tuning: every weight of the model, its gradient and AdamW's state on one rank, and the
// optimizer step over them. The optimizer's state is sharded over all ranks (Rajbhandari et al.
// 2020, ZeRO stage 1): a step reduce-scatters the gradients, each rank updates what it owns
// (trainer/model/weight_layout.h), and an all-gather brings the new weights to those who hold them.
//
// Bytes a rank for each weight of its tensor-parallel part, R ranks sharing the optimizer's state:
//   FP32: weight 4 (the master itself), gradient 4, moments 8 / R
//   BF16: weight 2, gradient 4, fp32 master and moments 12 / R
// R is the data-parallel degree, for shared tensors the number of all ranks.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/base_model.h"
#include "checkpoint/weight_state.h"
#include "kernels/stream.h"
#include "parallel/mesh.h"
#include "trainer/model/weight_layout.h"
#include "trainer/model/weights.h"
#include "trainer/run/optimizer.h"

namespace lorashard {

class FullWeights {
 public:
  // `type`: of the GEMMs, and of the weights that layers read: F32, or BF16 with fp32 masters
  // beside them. `host` reduces host memory over the ranks of mesh.world, in its order. What is
  // passed by reference outlives this. REQUIRES: mesh.data.
  FullWeights(Stream& stream, const ModelConfig& config, const Mesh& mesh, Communicator& host,
              DType type);

  const WeightLayout& layout() const { return layout_; }
  // Of gradients, masters and moments, which no page of the machine need hold before the first
  // step.
  size_t state_bytes() const {
    return gradients_.bytes() + masters_.bytes() + first_moments_.bytes() + second_moments_.bytes();
  }
  // What layers read and where they add gradients. Points into this.
  ModelWeights weights() const;

  // gradients = 0: before the step's first micro-batch.
  void clear_gradients();
  // As reduce_step(): gradients, reduced, to the ranks that own them; message and norm to all. The
  // only place of a step where the host waits for the device.
  StepSums reduce(const StepMessage& mine, const LossTotals* totals);
  // As apply_step(). Biases and norms do not decay unless `decay_vectors`.
  void apply(const OptimizerSettings& settings, bool decay_vectors, double learning_rate,
             int64_t step, int64_t unmasked, double norm);
  // As check_replicas(), of the weights that layers read. Collective.
  void check_replicas() const;

  // Rows of a tensor at a time, small enough for all ranks to hold them.
  static int64_t block_rows(const TensorSpec& spec);
  // Takes rows [first, first + rows) of a tensor, whole rows of fp32 in host memory.
  void write_rows(const WeightTensor& t, WeightState state, int64_t first, int64_t rows,
                  const float* values);
  // The rows, from the ranks that own them to `values` on all ranks. Collective.
  void read_rows(const WeightTensor& t, WeightState state, int64_t first, int64_t rows,
                 float* values) const;

 private:
  // What this rank owns of a section, and its place in buffers of owned elements.
  struct Owned {
    Communicator* group;  // whose ranks own the slices
    Range range;          // of the flat buffer
    int64_t at;
  };
  float* state_at(const Owned& owned, WeightState state) const;
  Matrix section(WeightSectionKind kind, void* flat, DType type) const;
  // Calls visit(state of the first element, offset in the held elements of t, count) for what this
  // rank owns of elements [begin, end) of those that it holds of t.
  void owned_pieces(const WeightTensor& t, WeightState state, int64_t begin, int64_t end,
                    const std::function<void(float*, int64_t, int64_t)>& visit) const;

  Stream& stream_;
  const ModelConfig& config_;
  Communicator& world_;
  Communicator& host_;
  int tp_rank_, tp_size_;
  DType type_;
  WeightLayout layout_;
  EnumArray<WeightSectionKind, 2, Owned> owned_;
  int64_t message_floats_;
  Buffer values_, gradients_, masters_, first_moments_, second_moments_, message_, squares_;
};

}  // namespace lorashard
