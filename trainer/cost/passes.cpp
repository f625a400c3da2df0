#include "trainer/cost/passes.h"

#include <cstdlib>
#include <numeric>

#include "trainer/step_message.h"

namespace lorashard {
namespace {

constexpr DType kF32 = DType::F32;

// One micro-batch under way.
class Pass {
 public:
  Pass(Tally& tally, const TrainingJob& job, const RankShape& shape, const BatchShape& batch,
       bool overlaps)
      : tally_(tally),
        job_(job),
        shape_(shape),
        d_(shape.dims),
        batch_(batch),
        tokens_(batch.tokens()),
        act_(job.activation_type),
        bf16_(job.activation_type == DType::BF16),
        overlaps_(overlaps) {}

  void embed();
  void forward(const BlockShape& b, bool first, bool last);
  void recompute(const BlockShape& b, Keep kept);
  void backward(const BlockShape& b, bool lowest);
  void loss();

 private:
  // Bytes of (tokens, width) activations.
  double rows(int64_t width) const { return double(tokens_) * double(width * size_of(act_)); }
  void norm(int64_t width) { tally_.pass("rms_norm_forward", 2 * rows(width)); }
  // The norm before a half of a layer; `adds` what the half before it left, as it goes: x and delta
  // in, the sum and its norm out.
  void half_norm(bool adds) { tally_.pass("rms_norm_forward", (adds ? 4 : 2) * rows(d_.hidden)); }
  void norm_backward(int64_t width, bool accumulate) {
    tally_.pass("rms_norm_backward", (accumulate ? 4 : 3) * rows(width));
  }
  void rotate() {
    tally_.pass("rope", 2 * rows(d_.q_width));
    tally_.pass("rope", 2 * rows(d_.kv_width));
  }
  void reduce(const char* label, int64_t width) {
    tally_.sum(label, job_.tensor, rows(width), overlaps_);
  }
  void lora(const char* kernel, int64_t m, int64_t n, int64_t k, DType y, DType a, DType b,
            bool accumulate);
  void group_forward(const GroupShape& g, bool reuse_u);
  void group_backward(const GroupShape& g, bool needs_dx);
  void project_qkv(const BlockShape& b, bool adds, bool reuse_u);
  void project_gate_up(const BlockShape& b, bool adds, bool reuse_u);
  void normed_query_key();
  void attend(const BlockShape& b);
  void attend_backward(const BlockShape& b);

  Tally& tally_;
  const TrainingJob& job_;
  const RankShape& shape_;
  const ActivationDims& d_;
  const BatchShape& batch_;
  const int64_t tokens_;
  const DType act_;
  const bool bf16_, overlaps_;
};

// A product with a factor counts as LoRA's in both passes.
void Pass::lora(const char* kernel, int64_t m, int64_t n, int64_t k, DType y, DType a, DType b,
                bool accumulate) {
  const std::string part = tally_.part();
  if (part != "recompute") tally_.set_part("lora");
  tally_.product(kernel, m, n, k, y, a, b, accumulate, bf16_);
  tally_.set_part(part);
}

void Pass::group_forward(const GroupShape& g, bool reuse_u) {
  const int64_t in = g.linears[0].in;
  if (g.adapted() && !reuse_u) {
    if (job_.dropout == 0) {
      lora("matmul_nt", tokens_, g.rank_sum, in, kF32, act_, kF32, false);
    } else {
      for (const LinearShape& l : g.linears) {
        if (l.rank == 0) continue;
        lora("lora_dropout_forward", tokens_, l.rank, in, kF32, act_, kF32, false);
      }
    }
  }
  for (const LinearShape& l : g.linears) {
    tally_.product("matmul_nt", tokens_, l.out, l.in, act_, act_, job_.base_type, false, bf16_);
    if (l.rank > 0) lora("matmul_nt", tokens_, l.out, l.rank, act_, kF32, kF32, true);
  }
}

void Pass::group_backward(const GroupShape& g, bool needs_dx) {
  bool first = true;
  for (const LinearShape& l : g.linears) {
    if (needs_dx) {
      tally_.product("matmul_nn", tokens_, l.in, l.out, act_, act_, job_.base_type, !first, bf16_);
      first = false;
    }
    if (l.rank == 0) continue;
    lora("matmul_tn", l.out, l.rank, tokens_, kF32, act_, kF32, true);
    lora("matmul_nn", tokens_, l.rank, l.out, kF32, act_, kF32, false);
  }
  if (!g.adapted()) return;
  const int64_t in = g.linears[0].in;
  if (job_.dropout == 0) {
    lora("matmul_tn", g.rank_sum, in, tokens_, kF32, kF32, act_, true);
    if (needs_dx) lora("matmul_nn", tokens_, in, g.rank_sum, act_, kF32, kF32, true);
    return;
  }
  for (const LinearShape& l : g.linears) {
    if (l.rank == 0) continue;
    lora("lora_dropout_wgrad", l.rank, in, tokens_, kF32, kF32, act_, true);
    if (needs_dx) lora("lora_dropout_dgrad", tokens_, in, l.rank, act_, kF32, kF32, true);
  }
}

void Pass::embed() {
  tally_.set_part("embedding");
  const double read = double(tokens_) * double(d_.hidden * size_of(job_.base_type));
  tally_.pass("embedding_forward", read + rows(d_.hidden));
  tally_.sum("embedding", job_.tensor, rows(d_.hidden));
}

void Pass::normed_query_key() {
  if (!d_.qk_norm) return;
  norm(d_.q_width);
  norm(d_.kv_width);
  rotate();
}

void Pass::project_qkv(const BlockShape& b, bool adds, bool reuse_u) {
  half_norm(adds);
  group_forward(b.groups[InputGroup::QKV], reuse_u);
  if (!d_.qk_norm) rotate();
  normed_query_key();
}

void Pass::project_gate_up(const BlockShape& b, bool adds, bool reuse_u) {
  half_norm(adds);
  group_forward(b.groups[InputGroup::GateUp], reuse_u);
}

// q k^T and p v.
void Pass::attend(const BlockShape& b) {
  double pairs = 0;
  for (const int64_t n : batch_.lengths) pairs += attention_pairs(n, b.window);
  const double flops = 4 * pairs * double(d_.q_width);
  tally_.attention("attention_forward", flops, 2 * rows(d_.q_width) + 2 * rows(d_.kv_width), bf16_);
}

// q k^T again, d_o v^T, and the gradients of q, k and v. Where the CPU has few heads for its
// threads it does seven products instead of five (kernels/attention.cpp); not counted.
void Pass::attend_backward(const BlockShape& b) {
  double pairs = 0;
  for (const int64_t n : batch_.lengths) pairs += attention_pairs(n, b.window);
  const double flops = 10 * pairs * double(d_.q_width);
  tally_.attention("attention_backward", flops, 4 * rows(d_.q_width) + 4 * rows(d_.kv_width),
                   bf16_);
}

void Pass::forward(const BlockShape& b, bool first, bool last) {
  tally_.set_part("forward");
  project_qkv(b, !first, false);
  attend(b);
  group_forward(b.groups[InputGroup::O], false);
  reduce("attention.forward", d_.hidden);
  project_gate_up(b, true, false);
  tally_.pass("gated_activation_forward", 3 * rows(d_.features));
  group_forward(b.groups[InputGroup::Down], false);
  reduce("mlp.forward", d_.hidden);
  if (!last) return;
  if (b.groups[InputGroup::Down].bias) tally_.pass("add_bias", 2 * rows(d_.hidden));
  tally_.pass("add", 3 * rows(d_.hidden));
}

void Pass::recompute(const BlockShape& b, Keep kept) {
  tally_.set_part("recompute");
  if (kept == Keep::All) return;
  if (kept == Keep::Nothing) {
    project_qkv(b, false, true);
    attend(b);
  }
  project_gate_up(b, false, true);
}

void Pass::backward(const BlockShape& b, bool lowest) {
  tally_.set_part("backward");
  const bool below_qkv = !lowest;
  const bool below_o = below_qkv || b.groups[InputGroup::QKV].adapted();
  const bool below_gate_up = below_o || b.groups[InputGroup::O].adapted();
  const bool below_down = below_gate_up || b.groups[InputGroup::GateUp].adapted();

  if (b.groups[InputGroup::Down].adapted())
    tally_.pass("gated_activation_forward", 3 * rows(d_.features));
  group_backward(b.groups[InputGroup::Down], below_down);
  if (!below_down) return;
  tally_.pass("gated_activation_backward", 5 * rows(d_.features));
  if (b.groups[InputGroup::GateUp].adapted()) norm(d_.hidden);
  group_backward(b.groups[InputGroup::GateUp], below_gate_up);
  if (!below_gate_up) return;
  reduce("mlp.backward", d_.hidden);
  norm_backward(d_.hidden, true);

  group_backward(b.groups[InputGroup::O], below_o);
  if (!below_o) return;
  normed_query_key();
  attend_backward(b);
  rotate();
  if (d_.qk_norm) {
    norm_backward(d_.q_width, false);
    norm_backward(d_.kv_width, false);
  }
  if (b.groups[InputGroup::QKV].adapted()) norm(d_.hidden);
  group_backward(b.groups[InputGroup::QKV], below_qkv);
  if (!below_qkv) return;
  reduce("attention.backward", d_.hidden);
  norm_backward(d_.hidden, true);
}

void Pass::loss() {
  tally_.set_part("loss");
  const int64_t h = d_.hidden, v = shape_.vocabulary;
  const int64_t count = batch_.counted;
  const double picked = double(count) * double(h * size_of(act_));
  tally_.pass("gather_rows", 2 * picked);
  tally_.pass("rms_norm_forward", 2 * picked);
  const int64_t chunks = (count + shape_.chunk_rows - 1) / shape_.chunk_rows;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t n = count * (chunk + 1) / chunks - count * chunk / chunks;
    const double logits = double(n) * double(v) * 4, statistics = double(n) * job_.tensor * 3 * 4;
    tally_.product("matmul_nt", n, v, h, kF32, act_, job_.base_type, false, bf16_);
    if (job_.tensor > 1) tally_.pass("fill_zero", statistics);
    tally_.pass("cross_entropy_stats", logits);
    tally_.sum("loss.statistics", job_.tensor, statistics);
    tally_.pass("cross_entropy_gradient", 2 * logits);
    tally_.product("matmul_nn", n, h, v, act_, kF32, job_.base_type, false, bf16_);
  }
  tally_.sum("loss.head_backward", job_.tensor, picked);
  tally_.pass("rms_norm_backward", 3 * picked);
  tally_.pass("fill_zero", rows(h));
  tally_.pass("scatter_rows", 2 * picked);
}

}  // namespace

int64_t BatchShape::tokens() const {
  return std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
}

double attention_pairs(int64_t length, int64_t window) {
  const double n = double(length);
  if (window <= 0 || window >= length) return n * (n + 1) / 2;
  const double w = double(window);
  return w * (w + 1) / 2 + (n - w) * w;
}

std::vector<BatchShape> batch_parts(const TrainingJob& job, const BatchShape& batch) {
  if (!job.overlap || job.tensor == 1 || batch.lengths.size() < 2) return {batch};
  // Cut where the sequence begins that is nearest to the middle, as Model does.
  const int64_t tokens = batch.tokens();
  int64_t offset = 0, best = 0;
  size_t cut = 0;
  for (size_t s = 1; s < batch.lengths.size(); ++s) {
    offset += batch.lengths[s - 1];
    if (cut == 0 || std::abs(2 * offset - tokens) < std::abs(2 * best - tokens)) {
      cut = s;
      best = offset;
    }
  }
  const auto middle = batch.lengths.begin() + int64_t(cut);
  return {{{batch.lengths.begin(), middle}, 0}, {{middle, batch.lengths.end()}, 0}};
}

void tally_micro_batch(Tally& tally, const TrainingJob& job, const RankShape& shape,
                       KeptLayers kept, const BatchShape& batch) {
  const std::vector<BatchShape> parts = batch_parts(job, batch);
  Pass whole(tally, job, shape, batch, false);
  whole.embed();
  whole.loss();
  const ActivationDims& d = shape.dims;
  for (const BatchShape& part : parts) {
    Pass pass(tally, job, shape, part, parts.size() > 1);
    for (const BlockShape& b : shape.blocks)
      pass.forward(b, &b == &shape.blocks.front(), &b == &shape.blocks.back());
    for (int64_t l = d.layers - 1; l >= d.first_layer; --l) {
      const BlockShape& b = shape.blocks[size_t(l)];
      const int64_t from_top = d.layers - l;
      pass.recompute(b, from_top <= kept.all                    ? Keep::All
                        : from_top <= kept.all + kept.attention ? Keep::Attention
                                                                : Keep::Nothing);
      pass.backward(b, l == d.first_layer);
    }
  }
}

void tally_optimizer(Tally& tally, const TrainingJob& job, const RankShape& shape) {
  tally.set_part("optimizer");
  const double floats = double(shape.factor_elements) * 4;
  const int world = job.tensor * job.data;
  tally.pass("fill_zero", floats);
  tally.pass("fill_zero", 8);  // the loss
  tally.sum("lora_gradient", world, floats + double(StepMessage::floats(world)) * 4);
  tally.pass("sum_of_squares", floats);
  tally.pass("adamw", 7 * floats);
}

}  // namespace lorashard
