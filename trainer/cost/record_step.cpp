#include "trainer/cost/record_step.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <stdexcept>

#include "kernels/profile.h"

namespace lorashard {

std::unique_ptr<Communicator> RecordingCommunicator::split(int) {
  throw std::logic_error("a recording communicator is not split");
}

void RecordingCommunicator::abort(int exit_status) { std::exit(exit_status); }

void RecordingCommunicator::do_all_reduce_sum(Stream& stream, Matrix x) {
  do_all_reduce_sum_begin(stream, x);
}

ReduceTicket RecordingCommunicator::do_all_reduce_sum_begin(Stream& stream, Matrix x) {
  reductions.push_back({label(), size(), traffic(x)});
  calls_at_begin_.push_back(stream.recorder()->calls.size());
  return ReduceTicket(reductions.size());
}

void RecordingCommunicator::do_all_reduce_sum_wait(Stream& stream, ReduceTicket ticket) {
  const auto i = size_t(ticket - 1);
  reductions[i].overlapped = stream.recorder()->calls.size() > calls_at_begin_[i];
}

RecordedRank::RecordedRank(const TrainingJob& job, Backend backend, int tp_rank,
                           size_t memory_budget)
    : job_(job),
      record_{.backend = backend, .calls = {}, .allocated = 0},
      stream_(record_),
      tensor_(tp_rank, job.tensor),
      world_(tp_rank, job.tensor * job.data),
      factors_(stream_,
               adapter_layout(job_.model, job_.modules, job_.adapter, tp_rank, job.tensor)),
      buffers_(stream_, factors_.size(), world_.size()),
      weights_(weights(tp_rank)),
      model_(stream_, job_.model, weights_, &factors_, buffers_.gradients(), tensor_,
             {.activation_type = job.activation_type,
              .max_tokens = job.micro_batch * job.sequence,
              .max_positions = job.sequence,
              .recompute = job.recompute,
              .memory_budget = memory_budget,
              .overlap = job.overlap,
              .dropout = job.dropout}) {
  model_.factors_changed();  // as a loaded adapter's: in no step
  record_.calls.clear();
  tensor_.reductions.clear();
}

ModelWeights RecordedRank::weights(int tp_rank) {
  factor_bytes_ = double(record_.allocated);
  ModelWeights weights = arrange_weights(
      job_.model, tp_rank, job_.tensor, [&](const TensorSpec&, const TensorPart& part) {
        const Matrix w = matrix(buffers_.gradients(), part.row_end - part.row_begin,
                                part.col_end - part.col_begin, job_.base_type);
        base_bytes_ += traffic(w);
        return w;
      });
  attach_factors(weights, &factors_);
  return weights;
}

void RecordedRank::micro_batch(const MicroBatch& batch) {
  Profiler spans;  // gives each kernel the names of the spans around it
  spans.attach();
  model_.forward_backward(batch);
}

void RecordedRank::optimizer_step() {
  Profiler spans;
  spans.attach();
  const ProfileSpan span("step", "optimizer");
  clear_gradients(stream_, buffers_);
  model_.clear_loss();
  reduce_step(stream_, buffers_, world_, {}, model_.loss_totals());
  apply_step(stream_, factors_, buffers_, {0.9f, 0.999f, 1e-8f, 0, 1}, 1e-4, 1, 1, 1);
  model_.factors_changed();
}

MicroBatch RecordedRank::full_micro_batch() const {
  MicroBatch batch;
  const auto tokens = size_t(job_.micro_batch * job_.sequence);
  batch.ids.assign(tokens, 0);
  batch.positions.assign(tokens, 0);
  batch.row_keys.assign(tokens, 0);
  batch.labels.assign(tokens, -100);
  for (int64_t s = 0; s <= job_.micro_batch; ++s)
    batch.offsets.push_back(int32_t(s * job_.sequence));
  batch.unmasked =
      std::llround(double(job_.micro_batch * (job_.sequence - 1)) * job_.unmasked_share);
  std::fill_n(batch.labels.begin(), batch.unmasked, 0);
  return batch;
}

}  // namespace lorashard
