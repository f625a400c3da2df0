#include "trainer/run/full_weights.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <span>

#include "checkpoint/file_io.h"
#include "configs/error.h"
#include "kernels/elementwise.h"
#include "kernels/transfer.h"

namespace lorashard {
namespace {

constexpr WeightSectionKind kSections[] = {WeightSectionKind::Own, WeightSectionKind::Shared};
constexpr int64_t kBlockBytes = 8 << 20;

size_t float_bytes(int64_t n) { return size_t(n) * sizeof(float); }

}  // namespace

FullWeights::FullWeights(Stream& stream, const ModelConfig& config, const Mesh& mesh,
                         Communicator& host, DType type)
    : stream_(stream),
      config_(config),
      world_(*mesh.world),
      host_(host),
      tp_rank_(mesh.tp_rank),
      tp_size_(mesh.tp_size),
      type_(type),
      layout_(weight_layout(config, mesh.tp_rank, mesh.tp_size, mesh.dp_size)),
      message_floats_(StepMessage::floats(mesh.world->size())) {
  int64_t owned = 0;
  for (const auto kind : kSections) {
    const WeightSection& s = layout_.sections[kind];
    Communicator* const group = kind == WeightSectionKind::Own ? mesh.data.get() : mesh.world;
    assert(group->size() == s.slices);
    owned_[kind] = {group, s.slice(group->rank()), owned};
    owned += owned_[kind].range.size();
  }
  values_ = Buffer(stream, size_t(layout_.size * size_of(type)));
  gradients_ = Buffer(stream, float_bytes(layout_.size));
  if (type != DType::F32) masters_ = Buffer(stream, float_bytes(owned));
  first_moments_ = Buffer(stream, float_bytes(owned));
  second_moments_ = Buffer(stream, float_bytes(owned));
  // The step's message, and behind it the squares' sum of each section as two floats.
  message_ = Buffer(stream, float_bytes(message_floats_ + 4));
  squares_ = Buffer(stream, 2 * sizeof(double));
  stream.reserve_for([&] {
    for (const auto kind : kSections)
      sum_of_squares(stream, squares_.as<double>(), gradients_.as<float>(),
                     owned_[kind].range.size());
  });
}

ModelWeights FullWeights::weights() const {
  const auto find = [this](const std::string& name) -> const WeightTensor* {
    for (const WeightTensor& t : layout_.tensors) {
      if (t.spec.name == name) return &t;
    }
    return nullptr;
  };
  ModelWeights w =
      arrange_weights(config_, tp_rank_, tp_size_, [&](const TensorSpec& spec, const TensorPart&) {
        return ConstMatrix(part_of(*find(spec.name), values_.data(), type_));
      });
  attach_gradients(w, config_, [&](const std::string& name) {
    const WeightTensor* t = find(name);
    return t && t->adds_gradient ? part_of(*t, gradients_.data(), DType::F32) : Matrix{};
  });
  return w;
}

Matrix FullWeights::section(WeightSectionKind kind, void* flat, DType type) const {
  const WeightSection& s = layout_.sections[kind];
  return matrix(static_cast<char*>(flat) + s.begin * size_of(type), 1, s.size, type);
}

float* FullWeights::state_at(const Owned& owned, WeightState state) const {
  switch (state) {
    case WeightState::Value:
      return type_ == DType::F32 ? values_.as<float>() + owned.range.begin
                                 : masters_.as<float>() + owned.at;
    case WeightState::FirstMoment:
      return first_moments_.as<float>() + owned.at;
    case WeightState::SecondMoment:
      break;
  }
  return second_moments_.as<float>() + owned.at;
}

void FullWeights::clear_gradients() {
  fill_zero(stream_, matrix(gradients_.data(), 1, layout_.size, DType::F32));
}

StepSums FullWeights::reduce(const StepMessage& mine, const LossTotals* totals) {
  const std::vector<float> message = mine.encode(world_.rank(), world_.size());
  auto* const floats = message_.as<float>();
  copy_to_device(stream_, floats, message.data(), int64_t(float_bytes(message_floats_)));
  if (totals) split_double(stream_, floats, floats + 1, &totals->loss);
  for (const auto kind : kSections) {
    const Owned& owned = owned_[kind];
    owned.group->reduce_scatter_sum(stream_, section(kind, gradients_.data(), DType::F32),
                                    "weight_gradient");
    double* const squares = squares_.as<double>() + size_t(kind);
    sum_of_squares(stream_, squares, gradients_.as<float>() + owned.range.begin,
                   owned.range.size());
    float* const pair = floats + message_floats_ + 2 * int64_t(kind);
    split_double(stream_, pair, pair + 1, squares);
  }
  const int64_t all = message_floats_ + 4;
  world_.all_reduce_sum(stream_, matrix(floats, 1, all, DType::F32), "step_message");
  // The one wait of the step.
  const auto sums = host_copy(stream_, floats, all);
  StepSums sum{StepMessage::decode(std::span(sums).first(message.size()))};
  sum.terms = sum.unmasked;
  for (size_t i = message.size(); i < sums.size(); ++i) sum.gradient_squares += double(sums[i]);
  return sum;
}

void FullWeights::apply(const OptimizerSettings& settings, bool decay_vectors, double learning_rate,
                        int64_t step, int64_t unmasked, double norm) {
  double clip = 1;
  if (settings.max_grad_norm > 0) clip = std::min(1.0, settings.max_grad_norm / (norm + 1e-6));
  AdamWStep update{.learning_rate = float(learning_rate),
                   .beta1 = settings.beta1,
                   .beta2 = settings.beta2,
                   .epsilon = settings.epsilon,
                   .weight_decay = settings.weight_decay,
                   .step = step,
                   .gradient_scale = float(clip / double(unmasked))};
  for (const auto kind : kSections) {
    const Owned& owned = owned_[kind];
    const int64_t middle =
        std::clamp(layout_.sections[kind].vectors, owned.range.begin, owned.range.end);
    for (const auto& [from, to, decays] : {std::tuple{owned.range.begin, middle, true},
                                           std::tuple{middle, owned.range.end, decay_vectors}}) {
      if (from == to) continue;
      const int64_t at = from - owned.range.begin;
      update.weight_decay = decays ? settings.weight_decay : 0;
      adamw(stream_, state_at(owned, WeightState::Value) + at,
            state_at(owned, WeightState::FirstMoment) + at,
            state_at(owned, WeightState::SecondMoment) + at, gradients_.as<float>() + from,
            to - from, update);
    }
    const Matrix values = section(kind, values_.data(), type_);
    if (type_ != DType::F32)
      convert(stream_, owned.group->slice(values),
              matrix(state_at(owned, WeightState::Value), 1, owned.range.size(), DType::F32));
    owned.group->all_gather_slices(stream_, values, "weights");
  }
}

void FullWeights::check_replicas() const {
  if (world_.size() == 1) return;
  constexpr size_t kDigest = 16;  // characters of the SHA-256 kept: 64 bits
  std::string mine;
  for (const WeightTensor& t : layout_.tensors) {
    const int64_t bytes = t.held_rows() * t.held_cols() * size_of(type_);
    const auto host = host_copy(stream_, values_.as<char>() + t.offset * size_of(type_), bytes);
    mine += sha256_hex(host.data(), host.size()).substr(0, kDigest);
  }
  std::string theirs(mine.size() * size_t(world_.size()), '\0');
  world_.all_gather(mine.data(), theirs.data(), int64_t(mine.size()), "replica_check");
  for (size_t i = 0; i < layout_.tensors.size(); ++i) {
    const WeightTensor& t = layout_.tensors[i];
    const auto of_rank = [&](int r) {
      return theirs.substr(size_t(r) * mine.size() + i * kDigest, kDigest);
    };
    std::string ranks;
    for (int r = 0; r < world_.size(); ++r) {
      const int like = t.section == WeightSectionKind::Shared ? 0 : r % tp_size_;
      if (of_rank(r) != of_rank(like)) ranks += (ranks.empty() ? "" : ", ") + std::to_string(r);
    }
    if (ranks.empty()) continue;
    fail_on_all_ranks(kExitFailure, t.spec.name,
                      "differs between the first replica and rank(s) " + ranks +
                          ", replicas must be identical; resume from the last checkpoint");
  }
}

int64_t FullWeights::block_rows(const TensorSpec& spec) {
  return std::max<int64_t>(1, kBlockBytes / int64_t(float_bytes(spec.cols)));
}

void FullWeights::owned_pieces(const WeightTensor& t, WeightState state, int64_t begin, int64_t end,
                               const std::function<void(float*, int64_t, int64_t)>& visit) const {
  const Owned& owned = owned_[t.section];
  const int64_t from = std::max(t.offset + begin, owned.range.begin);
  const int64_t to = std::min(t.offset + end, owned.range.end);
  if (from < to)
    visit(state_at(owned, state) + from - owned.range.begin, from - t.offset, to - from);
}

void FullWeights::write_rows(const WeightTensor& t, WeightState state, int64_t first, int64_t rows,
                             const float* values) {
  const int64_t begin = std::max(first, t.held.row_begin);
  const int64_t end = std::min(first + rows, t.held.row_end), cols = t.held_cols();
  if (begin >= end || cols == 0) return;
  // What is held of them, without gaps.
  std::vector<float> held(size_t((end - begin) * cols));
  for (int64_t r = begin; r < end; ++r)
    std::memcpy(held.data() + (r - begin) * cols,
                values + (r - first) * t.spec.cols + t.held.col_begin, float_bytes(cols));
  const int64_t at = (begin - t.held.row_begin) * cols;
  owned_pieces(
      t, state, at, at + int64_t(held.size()), [&](float* to, int64_t offset, int64_t count) {
        copy_to_device(stream_, to, held.data() + offset - at, int64_t(float_bytes(count)));
      });
  if (state != WeightState::Value) return;
  Stream host(1);
  std::vector<char> converted(held.size() * size_t(size_of(type_)));
  convert(host, matrix(converted.data(), 1, int64_t(held.size()), type_),
          const_matrix(held.data(), 1, int64_t(held.size()), DType::F32));
  copy_to_device(stream_, values_.as<char>() + (t.offset + at) * size_of(type_), converted.data(),
                 int64_t(converted.size()));
}

void FullWeights::read_rows(const WeightTensor& t, WeightState state, int64_t first, int64_t rows,
                            float* values) const {
  // Each element is one rank's and zero elsewhere, so that sums of their bits are the bits.
  std::vector<int64_t> sum(size_t(rows * t.spec.cols + 1) / 2);
  auto* const all = reinterpret_cast<float*>(sum.data());
  const int64_t begin = std::max(first, t.held.row_begin);
  const int64_t end = std::min(first + rows, t.held.row_end), cols = t.held_cols();
  if (begin < end && cols > 0) {
    const int64_t at = (begin - t.held.row_begin) * cols;
    owned_pieces(
        t, state, at, at + (end - begin) * cols, [&](float* from, int64_t offset, int64_t count) {
          const auto mine = host_copy(stream_, from, count);
          for (int64_t i = 0; i < count;) {
            const int64_t row = (offset + i) / cols, col = (offset + i) % cols;
            const int64_t n = std::min(count - i, cols - col);
            std::memcpy(
                all + (t.held.row_begin + row - first) * t.spec.cols + t.held.col_begin + col,
                mine.data() + i, float_bytes(n));
            i += n;
          }
        });
  }
  Stream host(1);
  host_.all_reduce_sum(host, matrix(sum.data(), 1, int64_t(sum.size()), DType::I64),
                       "weight_state");
  std::memcpy(values, all, float_bytes(rows * t.spec.cols));
}

}  // namespace lorashard
