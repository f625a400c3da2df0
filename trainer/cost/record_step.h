// A training step of one rank as the program itself would run it, recorded: weights, factors and
// model are laid out as for a run, but nothing is allocated, computed or sent (kernels/record.h).
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "trainer/model/model.h"
#include "trainer/run/optimizer.h"

namespace lorashard {

// What is trained how. The data-parallel degree is `data`; each of its replicas has `tensor` ranks.
struct TrainingJob {
  ModelConfig model;
  std::vector<LinearModule> modules;   // adapted; at least one
  AdapterConfig adapter;               // their lora_rank
  DType base_type = DType::BF16;       // as the base is stored
  DType activation_type = DType::F32;  // GEMMs, activations: F32 or BF16
  int64_t sequence = 512;              // tokens of every sequence
  int64_t micro_batch = 2;             // sequences at once on a rank
  int64_t global_batch = 2;            // sequences of a step: a multiple of micro_batch * data
  double unmasked_share = 1;           // of the tokens that can be: sequence - 1 a sequence
  int tensor = 1, data = 1;
  Recompute recompute = Recompute::Auto;
  bool overlap = false;          // parallel.overlap: two halves of a micro-batch in flight
  double activation_budget = 0;  // bytes that Auto may fill; 0: what the machine has left
  float dropout = 0;
};

struct RecordedReduction {
  std::string label;        // as in traces of collectives
  int64_t ranks = 1;        // in the all-reduce
  double bytes = 0;         // payload of this rank
  bool overlapped = false;  // kernels were enqueued while it was under way
};

// Sends nothing; notes what it is asked to reduce.
class RecordingCommunicator : public Communicator {
 public:
  RecordingCommunicator(int rank, int size) : Communicator(rank, size) {}
  std::vector<RecordedReduction> reductions;

  std::unique_ptr<Communicator> split(int color) override;
  [[noreturn]] void abort(int exit_status) override;

 private:
  void do_all_reduce_sum(Stream& stream, Matrix x) override;
  ReduceTicket do_all_reduce_sum_begin(Stream& stream, Matrix x) override;
  void do_all_reduce_sum_wait(Stream& stream, ReduceTicket ticket) override;
  void do_all_gather(const void*, void*, int64_t) override {}
  void do_broadcast(void*, int64_t, int) override {}
  void do_barrier() override {}

  std::vector<size_t> calls_at_begin_;  // by reduction: kernels recorded before it
};

// One rank of a job, on kernels of `backend`.
class RecordedRank {
 public:
  // memory_budget: of activations, as ModelOptions.
  RecordedRank(const TrainingJob& job, Backend backend, int tp_rank, size_t memory_budget);
  void micro_batch(const MicroBatch& batch);
  // What comes once in a step.
  void optimizer_step();
  // A micro-batch of the job.
  MicroBatch full_micro_batch() const;

  const Model& model() const { return model_; }
  // The kernels since the last call, in order.
  std::vector<KernelCall> take_kernels() { return std::exchange(record_.calls, {}); }
  const std::vector<RecordedReduction>& tensor_reductions() const { return tensor_.reductions; }
  const std::vector<RecordedReduction>& world_reductions() const { return world_.reductions; }

  // Bytes of this rank: its shard of the base as stored, tied weights once; values, gradients and
  // moments; and what kernels convert operands in.
  double base_bytes() const { return base_bytes_; }
  double factor_bytes() const { return factor_bytes_; }
  double scratch_bytes() const { return double(stream_.scratch_bytes()); }

 private:
  ModelWeights weights(int tp_rank);

  TrainingJob job_;
  KernelRecord record_;
  Stream stream_;
  RecordingCommunicator tensor_, world_;
  double base_bytes_ = 0, factor_bytes_ = 0;
  Factors factors_;
  TrainingBuffers buffers_;
  ModelWeights weights_;
  Model model_;
};

}  // namespace lorashard
