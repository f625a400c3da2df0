#include "trainer/run/optimizer.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/file_io.h"
#include "configs/error.h"
#include "kernels/elementwise.h"
#include "kernels/transfer.h"

namespace lorashard {
namespace {

// What AdamW does otherwise for some tensors than for others.
struct ParameterGroup {
  double rate;  // over the learning rate
  float decay;
  bool operator==(const ParameterGroup&) const = default;
};

// Plain LoRA has one group. LoRA+ (Hayou et al. 2024) has those of PEFT's
// create_loraplus_optimizer: B and whatever is a vector learn faster, and biases do not decay.
ParameterGroup group_of(const AdapterLayout& layout, const AdapterTensor& t,
                        const OptimizerSettings& settings) {
  if (settings.loraplus_ratio == 1) return {1, settings.weight_decay};
  const bool vector = t.kind == AdapterTensorKind::Magnitude ||
                      (t.kind == AdapterTensorKind::Base && layout.trained[t.index].base.vector);
  if (t.kind != AdapterTensorKind::LoraB && !vector) return {1, settings.weight_decay};
  const bool bias = t.kind == AdapterTensorKind::Base && layout.owner(t).ends_with("bias");
  return {settings.loraplus_ratio, bias ? 0 : settings.weight_decay};
}

}  // namespace

void clear_gradients(Stream& stream, TrainingBuffers& buffers) {
  fill_zero(stream, matrix(buffers.gradients(), 1, buffers.size(), DType::F32));
}

StepSums reduce_step(Stream& stream, TrainingBuffers& buffers, Communicator& world,
                     const StepMessage& mine, const LossTotals* totals, int64_t sent) {
  const std::vector<float> message = mine.encode(world.rank(), world.size());
  assert(int64_t(message.size()) == buffers.message_floats());
  copy_to_device(stream, buffers.message(), message.data(),
                 buffers.message_floats() * int64_t{sizeof(float)});
  for (int64_t i = 0; totals && i < sent; ++i) {
    float* at = buffers.message() + 2 * i;
    split_double(stream, at, at + 1, &totals->loss + i);
  }
  world.all_reduce_sum(stream, buffers.gradients_and_message(), "lora_gradient");
  sum_of_squares(stream, buffers.squares(), buffers.gradients(), buffers.size());
  // The one wait of the step.
  const auto words = host_copy(stream, buffers.message(), buffers.floats_to_host());
  StepSums sum{StepMessage::decode(std::span(words).first(message.size()))};
  sum.terms = sum.unmasked;
  std::memcpy(&sum.gradient_squares, &words[words.size() - 2], sizeof sum.gradient_squares);
  return sum;
}

double gradient_norm(const StepSums& sum) {
  return std::sqrt(sum.gradient_squares) / double(std::max<int64_t>(sum.terms, 1));
}

void apply_step(Stream& stream, Factors& factors, TrainingBuffers& buffers,
                const OptimizerSettings& settings, double learning_rate, int64_t step,
                int64_t terms, double norm) {
  double clip = 1;
  if (settings.max_grad_norm > 0) clip = std::min(1.0, settings.max_grad_norm / (norm + 1e-6));
  // Neighbours of one rate in one kernel.
  const std::vector<AdapterTensor>& tensors = factors.layout().tensors;
  for (size_t i = 0; i < tensors.size();) {
    const ParameterGroup group = group_of(factors.layout(), tensors[i], settings);
    const int64_t begin = tensors[i].offset;
    int64_t end = begin;
    for (; i < tensors.size() && group_of(factors.layout(), tensors[i], settings) == group; ++i)
      end = tensors[i].offset + tensors[i].size();
    adamw(stream, factors.values() + begin, buffers.first_moments() + begin,
          buffers.second_moments() + begin, buffers.gradients() + begin, end - begin,
          {.learning_rate = float(learning_rate * group.rate),
           .beta1 = settings.beta1,
           .beta2 = settings.beta2,
           .epsilon = settings.epsilon,
           .weight_decay = group.decay,
           .step = step,
           .gradient_scale = float(clip / double(terms))});
  }
}

void check_replicas(const Factors& factors, const TrainingBuffers& buffers, Communicator& world) {
  if (world.size() == 1) return;
  constexpr size_t kDigest = 16;  // characters of the SHA-256 kept: 64 bits
  const AdapterLayout& layout = factors.layout();
  const auto& modules = layout.modules;
  std::vector<std::string> digests(modules.size() + layout.trained.size());
  for (const float* flat : {factors.values(), buffers.first_moments(), buffers.second_moments()}) {
    const std::vector<float> host = factors.read(flat);
    for (const AdapterTensor& t : layout.tensors) {
      const bool base = t.kind == AdapterTensorKind::Base;
      digests[t.index + (base ? modules.size() : 0)] +=
          sha256_hex(host.data() + t.offset, size_t(t.size()) * sizeof(float));
    }
  }
  std::string mine;
  for (const std::string& all : digests) {
    mine += sha256_hex(all.data(), all.size()).substr(0, kDigest);
  }
  std::string theirs(mine.size() * size_t(world.size()), '\0');
  world.all_gather(mine.data(), theirs.data(), int64_t(mine.size()), "replica_check");
  for (size_t m = 0; m < digests.size(); ++m) {
    const std::string first = theirs.substr(m * kDigest, kDigest);
    std::string ranks;
    for (int r = 1; r < world.size(); ++r) {
      if (theirs.compare(size_t(r) * mine.size() + m * kDigest, kDigest, first) != 0) {
        ranks += (ranks.empty() ? "" : ", ") + std::to_string(r);
      }
    }
    if (ranks.empty()) continue;
    fail_on_all_ranks(
        kExitFailure,
        m < modules.size() ? modules[m].linear.name : layout.trained[m - modules.size()].base.name,
        "factors or moments differ between rank 0 and rank(s) " + ranks +
            ", replicas must be identical; resume from the last checkpoint");
  }
}

}  // namespace lorashard
