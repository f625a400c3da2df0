#include "trainer/optimizer.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "checkpoint/file_io.h"
#include "configs/error.h"
#include "kernels/transfer.h"

namespace lorashard {
namespace {

// Slots of the tail; one more per rank follows for its rss.
enum Slot {
  kLossHigh,
  kLossLow,
  kCountedHigh,
  kCountedLow,
  kTokensHigh,
  kTokensLow,
  kInt,
  kTerm,
  kLeft,
  kSlow,
  kSlots
};

// A count as two floats whose sums over up to 4096 ranks stay exact.
constexpr int64_t kCountBase = 4096;
void put_count(std::vector<float>& tail, Slot high, Slot low, int64_t count) {
  tail[high] = float(count / kCountBase);
  tail[low] = float(count % kCountBase);
}
int64_t get_count(const std::vector<float>& tail, Slot high, Slot low) {
  return int64_t(tail[high]) * kCountBase + int64_t(tail[low]);
}

}  // namespace

int64_t step_tail_floats(int world_size) { return kSlots + world_size; }

StepCounts reduce_step(Stream& stream, Factors& factors, Communicator& world,
                       const StepCounts& mine, const double* loss_sum) {
  assert(factors.tail() == step_tail_floats(world.size()));
  std::vector<float> tail(static_cast<size_t>(factors.tail()));
  put_count(tail, kCountedHigh, kCountedLow, mine.counted);
  put_count(tail, kTokensHigh, kTokensLow, mine.tokens);
  tail[kInt] = mine.interrupted;
  tail[kTerm] = mine.terminated;
  tail[kLeft] = mine.left;
  tail[kSlow] = mine.slow;
  tail[size_t(kSlots + world.rank())] = float(mine.rss_mib);
  float* device_tail = factors.gradients() + factors.size();
  const int64_t tail_bytes = factors.tail() * int64_t{sizeof(float)};
  copy_to_device(stream, device_tail, tail.data(), tail_bytes);
  if (loss_sum) {
    split_double(stream, device_tail + kLossHigh, device_tail + kLossLow, loss_sum);
  }
  world.all_reduce_sum(stream,
                       matrix(factors.gradients(), 1, factors.size() + factors.tail(), DType::F32),
                       "lora_gradient");
  sum_of_squares(stream, factors.squares(), factors.gradients(), factors.size());
  // The one wait of the step.
  const auto words = host_copy(stream, device_tail, factors.squares_offset() + 2 - factors.size());
  std::copy_n(words.begin(), tail.size(), tail.begin());
  StepCounts sum;
  std::memcpy(&sum.gradient_squares, &words[words.size() - 2], sizeof sum.gradient_squares);
  sum.loss_sum = double(tail[kLossHigh]) + double(tail[kLossLow]);
  sum.counted = get_count(tail, kCountedHigh, kCountedLow);
  sum.tokens = get_count(tail, kTokensHigh, kTokensLow);
  sum.interrupted = tail[kInt] > 0;
  sum.terminated = tail[kTerm] > 0;
  sum.left = tail[kLeft] > 0;
  sum.slow = tail[kSlow] > 0;
  sum.rss_mib = *std::max_element(tail.begin() + kSlots, tail.end());
  return sum;
}

double gradient_norm(const StepCounts& sum) {
  return std::sqrt(sum.gradient_squares) / double(std::max<int64_t>(sum.counted, 1));
}

void apply_step(Stream& stream, Factors& factors, const OptimizerSettings& settings,
                double learning_rate, int64_t step, int64_t counted, double norm) {
  double clip = 1;
  if (settings.max_grad_norm > 0) clip = std::min(1.0, settings.max_grad_norm / (norm + 1e-6));
  adamw(stream, factors.values(), factors.first_moments(), factors.second_moments(),
        factors.gradients(), factors.size(),
        {.learning_rate = float(learning_rate),
         .beta1 = settings.beta1,
         .beta2 = settings.beta2,
         .epsilon = settings.epsilon,
         .weight_decay = settings.weight_decay,
         .step = step,
         .gradient_scale = float(clip / double(counted))});
}

void check_replicas(const Factors& factors, Communicator& world) {
  if (world.size() == 1) return;
  constexpr size_t kDigest = 16;  // characters of the SHA-256 kept: 64 bits
  const auto& modules = factors.modules();
  const std::vector<float> flats[] = {factors.read(factors.values()),
                                      factors.read(factors.first_moments()),
                                      factors.read(factors.second_moments())};
  std::string mine;
  for (const LoraModule& m : modules) {
    std::string all;
    for (const std::vector<float>& flat : flats) {
      // A and B are not neighbours in the flat buffer.
      all += sha256_hex(flat.data() + m.a_offset, size_t(m.rank * m.linear.in_features) * 4);
      all += sha256_hex(flat.data() + m.b_offset, size_t(m.rank * m.linear.out_features) * 4);
    }
    mine += sha256_hex(all.data(), all.size()).substr(0, kDigest);
  }
  std::string theirs(mine.size() * size_t(world.size()), '\0');
  world.all_gather(mine.data(), theirs.data(), int64_t(mine.size()), "replica_check");
  for (size_t m = 0; m < modules.size(); ++m) {
    const std::string first = theirs.substr(m * kDigest, kDigest);
    std::string ranks;
    for (int r = 1; r < world.size(); ++r) {
      if (theirs.compare(size_t(r) * mine.size() + m * kDigest, kDigest, first) != 0) {
        ranks += (ranks.empty() ? "" : ", ") + std::to_string(r);
      }
    }
    if (ranks.empty()) continue;
    fail_on_all_ranks(kExitFailure, modules[m].linear.name,
                      "factors or moments differ between rank 0 and rank(s) " + ranks +
                          ", replicas must be identical; resume from the last checkpoint");
  }
}

}  // namespace lorashard
