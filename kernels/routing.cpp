#include "kernels/routing.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/float_types.h"
#include "kernels/parallel_for.h"
#include "kernels/profile.h"

namespace lorashard {
namespace {

const float* floats(ConstMatrix m, int64_t row) {
  return reinterpret_cast<const float*>(m.at(row, 0));
}
float* floats(Matrix m, int64_t row) { return reinterpret_cast<float*>(m.at(row, 0)); }
int32_t* integers(Matrix m) { return static_cast<int32_t*>(m.data); }

// Element j of row i, F32 or BF16, as float.
float load(ConstMatrix m, int64_t i, int64_t j) { return load_scalar(m.at(i, 0), m.dtype, j); }

int64_t grain(int64_t cols) { return 4096 / std::max<int64_t>(cols, 1) + 1; }

void softmax(float* p, const float* logits, int64_t n) {
  const float top = *std::max_element(logits, logits + n);
  float sum = 0;
  for (int64_t e = 0; e < n; ++e) sum += p[e] = std::exp(logits[e] - top);
  for (int64_t e = 0; e < n; ++e) p[e] /= sum;
}

// The k largest of p, each time the first that is larger than all others left; also of values that
// are not finite k different ones.
void choose(int32_t* chosen, const float* p, int64_t n, int64_t k) {
  for (int64_t j = 0; j < k; ++j) {
    int64_t best = -1;
    for (int64_t e = 0; e < n; ++e) {
      if (std::find(chosen, chosen + j, int32_t(e)) != chosen + j) continue;
      if (best < 0 || p[e] > p[best]) best = e;
    }
    chosen[j] = int32_t(best);
  }
}

// order, places and offsets from experts: a counting sort.
void sort_by_expert(const Routing& r) {
  const int64_t choices = r.experts.rows * r.experts.cols, experts = r.probabilities.cols;
  const int32_t* expert = integers(r.experts);
  int32_t* offsets = integers(r.offsets);
  std::fill_n(offsets, experts + 1, 0);
  for (int64_t c = 0; c < choices; ++c) ++offsets[expert[c] + 1];
  for (int64_t e = 0; e < experts; ++e) offsets[e + 1] += offsets[e];
  std::vector<int32_t> next(offsets, offsets + experts);
  for (int64_t c = 0; c < choices; ++c) {
    const int32_t place = next[size_t(expert[c])]++;
    integers(r.places)[c] = place;
    integers(r.order)[place] = int32_t(c);
  }
}

}  // namespace

void route_forward(Stream& stream, const Routing& r, ConstMatrix logits, bool normalized) {
  if (stream.record("route_forward",
                    {traffic(logits, r.probabilities, r.weights, r.experts, r.order, r.places)}))
    return;
  const ProfileSpan span("kernel", "route_forward");
  const int64_t experts = logits.cols, k = r.weights.cols;
  parallel_for(stream, logits.rows, grain(experts * k), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      float *p = floats(r.probabilities, t), *w = floats(r.weights, t);
      int32_t* chosen = integers(r.experts) + t * k;
      softmax(p, floats(logits, t), experts);
      choose(chosen, p, experts, k);
      float sum = 0;
      for (int64_t j = 0; j < k; ++j) sum += w[j] = p[chosen[j]];
      if (normalized)
        for (int64_t j = 0; j < k; ++j) w[j] /= sum;
    }
  });
  sort_by_expert(r);
}

// With p = softmax(logits) and choices j of experts e_j:
//   w_j = p_{e_j}:        dp_{e_j} = dw_j
//   w_j = p_{e_j} / P:    dp_{e_j} = (dw_j - sum_i dw_i w_i) / P, P the sum of the chosen p
// and d logits_i = p_i (dp_i - sum_m dp_m p_m).
void route_backward(Stream& stream, Matrix d_logits, ConstMatrix d_weights, const Routing& r,
                    bool normalized) {
  if (stream.record("route_backward", {traffic(d_logits, d_weights, r.probabilities)})) return;
  const ProfileSpan span("kernel", "route_backward");
  const int64_t experts = d_logits.cols, k = d_weights.cols;
  parallel_for(stream, d_logits.rows, grain(experts), [&](int64_t begin, int64_t end) {
    std::vector<float> dp(static_cast<size_t>(k));
    for (int64_t t = begin; t < end; ++t) {
      const float *p = floats(r.probabilities, t), *w = floats(r.weights, t),
                  *dw = floats(d_weights, t);
      const int32_t* chosen = integers(r.experts) + t * k;
      float total = 0, dot = 0;
      for (int64_t j = 0; j < k; ++j) total += p[chosen[j]], dot += dw[j] * w[j];
      float mean = 0;
      for (int64_t j = 0; j < k; ++j) {
        dp[size_t(j)] = normalized ? (dw[j] - dot) / total : dw[j];
        mean += dp[size_t(j)] * p[chosen[j]];
      }
      float* d = floats(d_logits, t);
      for (int64_t e = 0; e < experts; ++e) d[e] = -p[e] * mean;
      for (int64_t j = 0; j < k; ++j) d[chosen[j]] += p[chosen[j]] * dp[size_t(j)];
    }
  });
}

void gather_choices(Stream& stream, Matrix y, ConstMatrix x, const Routing& r) {
  if (stream.record("gather_choices", {traffic(y, y)})) return;
  const ProfileSpan span("kernel", "gather_choices");
  const int64_t k = r.order.cols;
  const auto bytes = size_t(y.cols * size_of(y.dtype));
  parallel_for(stream, y.rows, grain(y.cols), [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p)
      std::memcpy(y.at(p, 0), x.at(integers(r.order)[p] / k, 0), bytes);
  });
}

void sum_choices(Stream& stream, Matrix y, ConstMatrix x, const Routing& r, bool accumulate) {
  if (stream.record("sum_choices", {traffic(x, y) + (accumulate ? traffic(y) : 0)})) return;
  const ProfileSpan span("kernel", "sum_choices");
  const int64_t k = r.places.cols;
  parallel_for(stream, y.rows, grain(y.cols * k), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int32_t* places = integers(r.places) + t * k;
      for (int64_t i = 0; i < y.cols; ++i) {
        float sum = accumulate ? load(y, t, i) : 0;
        for (int64_t j = 0; j < k; ++j) sum += load(x, places[j], i);
        store_scalar(y.at(t, 0), y.dtype, i, sum);
      }
    }
  });
}

void weigh_choices(Stream& stream, Matrix y, ConstMatrix x, const Routing& r) {
  if (stream.record("weigh_choices", {traffic(x, y)})) return;
  const ProfileSpan span("kernel", "weigh_choices");
  parallel_for(stream, y.rows, grain(y.cols), [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const float w = static_cast<const float*>(r.weights.data)[integers(r.order)[p]];
      for (int64_t i = 0; i < y.cols; ++i) store_scalar(y.at(p, 0), y.dtype, i, w * load(x, p, i));
    }
  });
}

void weigh_choices_backward(Stream& stream, Matrix d_weights, Matrix dx, ConstMatrix dy,
                            ConstMatrix x, const Routing& r) {
  if (stream.record("weigh_choices_backward", {traffic(dx, dy) + (d_weights ? traffic(x) : 0)}))
    return;
  const ProfileSpan span("kernel", "weigh_choices_backward");
  parallel_for(stream, dy.rows, grain(dy.cols), [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const int32_t choice = integers(r.order)[p];
      const float w = static_cast<const float*>(r.weights.data)[choice];
      float dot = 0;
      for (int64_t i = 0; i < dy.cols; ++i) {
        const float d = load(dy, p, i);
        if (d_weights) dot += d * load(x, p, i);
        store_scalar(dx.at(p, 0), dx.dtype, i, w * d);
      }
      if (d_weights) static_cast<float*>(d_weights.data)[choice] = dot;
    }
  });
}

}  // namespace lorashard
