#include "trainer/model/dora.h"

#include <algorithm>

#include "kernels/columns.h"
#include "kernels/dora.h"
#include "kernels/elementwise.h"
#include "kernels/matmul.h"
#include "kernels/profile.h"
#include "trainer/model/activations.h"

namespace lorashard {

DoraNorms::DoraNorms(Stream& stream, ModelWeights& weights, const Factors& factors,
                     Communicator& tensor)
    : stream_(stream), factors_(factors), tensor_(tensor) {
  for (const bool row_parallel : {false, true}) {
    for (BlockWeights& block : weights.blocks) {
      for (LinearGroup& group : block.groups) {
        if (group.row_parallel != row_parallel) continue;
        for (Linear& l : group.linears) {
          if (l.lora && l.lora->dora) places_.push_back({&l, {}, {}});
        }
      }
    }
  }
  // Modules with DoRA are in one piece (check_trainable()).
  const auto width = [](const Place& p) {
    return p.linear->lora->magnitude.local_cols.front().size();
  };
  int64_t widest = 0, highest = 0;
  for (const Place& p : places_) {
    widest = std::max(widest, width(p));
    highest = std::max(highest, p.linear->lora->lora_rank);
  }
  const auto is_partial = [](const Place& p) {
    return is_row_parallel(p.linear->lora->linear.split);
  };
  const auto lay_out = [&](Arena& arena) {
    int64_t all = 0, partial = 0;
    for (const Place& p : places_) (is_partial(p) ? partial : all) += width(p);
    const Matrix whole = arena.take(1, all, DType::F32);
    partial_ = arena.take(1, partial, DType::F32);
    int64_t whole_at = 0, partial_at = 0;
    for (Place& p : places_) {
      const int64_t n = width(p);
      int64_t& at = is_partial(p) ? partial_at : whole_at;
      p.squares = (is_partial(p) ? partial_ : whole).col_range(at, n);
      at += n;
      p.base = arena.take(1, n, DType::F32);
      p.linear->dora = {.scale = arena.take(1, n, DType::F32),
                        .excess = arena.take(1, n, DType::F32),
                        .inverse_norm = arena.take(1, n, DType::F32)};
    }
    products_ = arena.take(highest, widest, DType::F32);
    gram_ = arena.take(highest, highest, DType::F32);
  };
  Arena counter;
  lay_out(counter);
  memory_ = Buffer(stream, counter.used());
  Arena arena(memory_.data());
  lay_out(arena);
  for (const Place& p : places_) frozen_row_squares(stream, p.base, p.linear->weight);
  stream.reserve_for([&] { form_norms(); });
}

void DoraNorms::form_norms() {
  for (const Place& p : places_) {
    const LoraModule& m = *p.linear->lora;
    const Matrix a = Factors::local_a(m, factors_.values());
    const Matrix products = products_.block(0, m.lora_rank, 0, p.squares.cols);
    const Matrix gram = gram_.block(0, m.lora_rank, 0, m.lora_rank);
    frozen_forward(stream_, products, a, p.linear->weight);
    matmul_nt(stream_, gram, a, a);
    dora_squares(stream_, p.squares, p.base, products, Factors::local_b(m, factors_.values(), 0),
                 gram, m.scaling);
  }
}

void DoraNorms::update() {
  const ProfileSpan span("lora", "dora_norms");
  form_norms();
  if (tensor_.size() > 1 && partial_.cols > 0) {
    tensor_.all_reduce_sum(stream_, partial_, "dora_norms");
  }
  for (const Place& p : places_) {
    const DoraVectors& v = p.linear->dora;
    dora_scales(stream_, v.scale, v.excess, v.inverse_norm, p.squares,
                local_block(p.linear->lora->magnitude, factors_.values()));
  }
}

void DoraNorms::initialize_magnitudes() {
  update();
  const AdapterTensor* first = nullptr;
  int64_t size = 0;
  for (const AdapterTensor& t : factors_.layout().tensors) {  // neighbours, by kind
    if (t.kind != AdapterTensorKind::Magnitude) continue;
    if (!first) first = &t;
    size += t.size();
  }
  const Matrix all = matrix(factors_.values() + first->offset, 1, size, DType::F32);
  fill_zero(stream_, all);
  for (const Place& p : places_) {
    const AdapterTensor& m = p.linear->lora->magnitude;
    const int64_t at = m.share.begin - m.local_cols.front().begin, n = m.share.size();
    if (n == 0) continue;
    scale_columns(stream_, share_of(m, factors_.values()), p.squares.col_range(at, n),
                  p.linear->dora.inverse_norm.col_range(at, n));
  }
  if (tensor_.size() > 1) tensor_.all_reduce_sum(stream_, all, "dora_magnitudes");
  update();
}

}  // namespace lorashard
