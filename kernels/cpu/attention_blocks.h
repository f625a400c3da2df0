// The attention tasks of attention_task.h for the target being compiled. Included by each
// target_*.cpp after blocks.h.

namespace lorashard::LORASHARD_TARGET {

static_assert(kRowBlock % W == 0);

// Scores are held times log2(e), so that weights are powers of two.
constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;

// A block of at most kRowBlock rows of a task.
struct RowBlock {
  const AttentionTask& task;
  int64_t begin, count;
  int64_t lanes;  // count, rounded up to whole vectors

  int64_t position(int64_t row) const {  // among the keys
    return task.keys - task.queries + row / task.heads;
  }
  int64_t first_position() const { return position(begin); }
  int64_t last_position() const { return position(begin + count - 1); }
  // Keys that some row of the block sees: [first_key, end_key), first_key at a block's start.
  int64_t first_key() const {
    const int64_t first = task.window ? first_position() - task.window + 1 : 0;
    return first <= 0 ? 0 : first / kKeyBlock * kKeyBlock;
  }
  int64_t end_key() const { return last_position() + 1; }
  // True if every row of the block sees all keys of [key, key + n).
  bool sees_all(int64_t key, int64_t n) const {
    return key + n - 1 <= first_position() &&
           (task.window == 0 || key > last_position() - task.window);
  }
  const char* at(ConstMatrix m, int64_t i) const {
    const int64_t row = begin + i;
    return m.at(row / task.heads, row % task.heads * task.head_dim);
  }
};

inline RowBlock row_block(const AttentionTask& task, int64_t begin) {
  const int64_t rest = task.row_end - begin, count = rest < kRowBlock ? rest : kRowBlock;
  return {task, begin, count, (count + W - 1) / W * W};
}

// x(count, D) = the block's rows of m in fp32.
inline void gather(float* x, const RowBlock& block, ConstMatrix m) {
  const int64_t d = block.task.head_dim;
  for (int64_t i = 0; i < block.count; ++i)
    convert(x + i * d, DType::F32, block.at(m, i), m.dtype, d);
}

inline void scatter(Matrix m, const RowBlock& block, const float* x) {
  const int64_t d = block.task.head_dim;
  for (int64_t i = 0; i < block.count; ++i)
    convert(const_cast<char*>(block.at(m, i)), m.dtype, x + i * d, DType::F32, d);
}

// xt(D, lanes) = factor * x(count, D)^T with zeros in the lanes beyond count; rows of xt are
// kRowBlock apart.
inline void transpose_rows(float* xt, const float* x, float factor, const RowBlock& block) {
  const int64_t d = block.task.head_dim;
  transpose(xt, kRowBlock, x, d, block.count, d);
  for (int64_t i = 0; i < d; ++i, xt += kRowBlock) {
    for (int64_t c = block.count; c < block.lanes; ++c) xt[c] = 0;
    if (factor != 1)
      for (int64_t c = 0; c < block.lanes; c += W) store(xt + c, load(xt + c) * factor);
  }
}

// Rows [begin, begin + n) of a key or value head as fp32: in place, or widened into `wide`.
struct Keys {
  const float* data;
  int64_t ld;
};
inline Keys keys(ConstMatrix m, int64_t begin, int64_t n, float* wide) {
  if (m.dtype == DType::F32) return {reinterpret_cast<const float*>(m.at(begin, 0)), m.ld};
  for (int64_t i = 0; i < n; ++i)
    convert(wide + i * m.cols, DType::F32, m.at(begin + i, 0), m.dtype, m.cols);
  return {wide, m.cols};
}

// Which lanes of the vector at lane c of the block see `key`.
struct Visibility {
  vi position[kRowBlock / W];
  int64_t window;

  explicit Visibility(const RowBlock& block)
      : window(block.task.window ? block.task.window : INT32_MAX) {
    for (int64_t c = 0; c < block.lanes; c += W)
      for (int i = 0; i < W; ++i) position[c / W][i] = int32_t(block.position(block.begin + c + i));
  }
  LORASHARD_INLINE vi operator()(int64_t c, int64_t key) const {
    const vi distance = position[c / W] - int32_t(key);
    return (distance >= 0) & (distance < vi{} + int32_t(window));
  }
};

inline void attention_forward(const AttentionTask& task, float* scratch) {
  const int64_t d = task.head_dim, rb = kRowBlock;
  const auto take = [&](int64_t n) { return scratch += n, scratch - n; };
  float *rows = take(d * rb), *qt = take(d * rb), *ot = take(d * rb);
  float *s = take(kKeyBlock * rb), *kw = take(kKeyBlock * d), *vw = take(kKeyBlock * d);
  float *top = take(rb), *total = take(rb);

  for (int64_t begin = task.row_begin; begin < task.row_end; begin += rb) {
    const RowBlock block = row_block(task, begin);
    const Visibility visible(block);
    gather(rows, block, task.q);
    transpose_rows(qt, rows, task.scale * kLog2E, block);
    for (int64_t c = 0; c < block.lanes; c += W) {
      store(top + c, splat(-1e30f));  // finite, so that differences of maxima are
      store(total + c, zero());
    }
    const int64_t first = block.first_key(), end = block.end_key();
    for (int64_t key = first; key < end; key += kKeyBlock) {
      const int64_t n = end - key < kKeyBlock ? end - key : kKeyBlock;
      const Keys k = keys(task.k, key, n, kw), v = keys(task.v, key, n, vw);
      block_gemm<false>(s, rb, k.data, k.ld, qt, rb, n, block.lanes, d, false);

      const bool whole = block.sees_all(key, n);
      bool grew = false;
      float correction[kRowBlock];
      for (int64_t c = 0; c < block.lanes; c += W) {
        float* column = s + c;
        vf high = load(top + c);
        if (whole)
          for (int64_t j = 0; j < n; ++j) high = max(load(column + j * rb), high);
        else
          for (int64_t j = 0; j < n; ++j) {
            const vf x = visible(c, key + j) ? load(column + j * rb) : splat(-__builtin_inff());
            store(column + j * rb, x);
            high = max(x, high);
          }
        const vf before = load(top + c), now = high;
        vf sum = zero();
        for (int64_t j = 0; j < n; ++j) {
          const vf p = exp2(load(column + j * rb) - now);
          store(column + j * rb, p);
          sum += p;
        }
        const vf factor = exp2(before - now);
        store(top + c, now);
        store(total + c, load(total + c) * factor + sum);
        store(correction + c, factor);
        for (int i = 0; i < W; ++i) grew |= factor[i] != 1.0f;
      }
      if (grew && key > first)
        for (int64_t i = 0; i < d; ++i)
          for (int64_t c = 0; c < block.lanes; c += W)
            store(ot + i * rb + c, load(ot + i * rb + c) * load(correction + c));
      block_gemm<true>(ot, rb, v.data, v.ld, s, rb, d, block.lanes, n, key > first);
    }
    for (int64_t i = 0; i < d; ++i)
      for (int64_t c = 0; c < block.lanes; c += W)
        store(ot + i * rb + c, load(ot + i * rb + c) / load(total + c));
    transpose(rows, d, ot, rb, d, block.count);
    scatter(task.write_o, block, rows);
    for (int64_t i = 0; i < block.count && task.write_lse; ++i) {
      const int64_t row = begin + i;
      *reinterpret_cast<float*>(task.write_lse.at(row / task.heads, row % task.heads)) =
          top[i] * kLn2 + __builtin_logf(total[i]);
    }
  }
}

inline void attention_backward(const AttentionTask& task, float* scratch) {
  const int64_t d = task.head_dim, rb = kRowBlock;
  const auto take = [&](int64_t n) { return scratch += n, scratch - n; };
  float *q = take(d * rb), *qt = take(d * rb), *g = take(d * rb), *gt = take(d * rb);
  float *dq = take(d * rb), *o = take(d * rb);
  float *p = take(kKeyBlock * rb), *dp = take(kKeyBlock * rb);
  float *kw = take(kKeyBlock * d), *vw = take(kKeyBlock * d);
  float *lse = take(rb), *delta = take(rb);

  // dk and dv are summed in fp32, in place where they are fp32.
  const int64_t key_count = task.key_end - task.key_begin;
  const bool in_place = task.dk && task.dk.dtype == DType::F32;
  float *dk = nullptr, *dv = nullptr;
  int64_t ldk = d, ldv = d;
  if (task.dk) {
    if (in_place) {
      dk = reinterpret_cast<float*>(task.dk.at(task.key_begin, 0)), ldk = task.dk.ld;
      dv = reinterpret_cast<float*>(task.dv.at(task.key_begin, 0)), ldv = task.dv.ld;
    } else {
      dk = take(key_count * d), dv = take(key_count * d);
    }
    for (int64_t j = 0; j < key_count; ++j) {
      __builtin_memset(dk + j * ldk, 0, size_t(d) * sizeof(float));
      __builtin_memset(dv + j * ldv, 0, size_t(d) * sizeof(float));
    }
  }

  for (int64_t begin = task.row_begin; begin < task.row_end; begin += rb) {
    const RowBlock block = row_block(task, begin);
    const int64_t first = block.first_key() > task.key_begin ? block.first_key() : task.key_begin;
    const int64_t end = block.end_key() < task.key_end ? block.end_key() : task.key_end;
    if (first >= end) continue;
    const Visibility visible(block);
    gather(q, block, task.q);
    gather(g, block, task.d_o);
    gather(o, block, task.o);
    transpose_rows(qt, q, task.scale * kLog2E, block);
    transpose_rows(gt, g, 1, block);
    scale(q, DType::F32, q, DType::F32, task.scale, block.count * d);
    // Lanes beyond the rows get lse = inf, hence p = 0.
    for (int64_t i = 0; i < block.lanes; ++i) {
      const int64_t row = begin + i;
      const bool real = i < block.count;
      lse[i] = real ? kLog2E * *reinterpret_cast<const float*>(
                                   task.lse.at(row / task.heads, row % task.heads))
                    : __builtin_inff();
      vf dot = zero();
      if (real)
        each(d, [&](int64_t c, auto k) { dot += load(g + i * d + c, k) * load(o + i * d + c, k); });
      delta[i] = sum(dot);
    }

    for (int64_t key = first; key < end; key += kKeyBlock) {
      const int64_t n = end - key < kKeyBlock ? end - key : kKeyBlock;
      const Keys k = keys(task.k, key, n, kw), v = keys(task.v, key, n, vw);
      block_gemm<false>(p, rb, k.data, k.ld, qt, rb, n, block.lanes, d, false);
      block_gemm<false>(dp, rb, v.data, v.ld, gt, rb, n, block.lanes, d, false);
      const bool whole = block.sees_all(key, n);
      for (int64_t c = 0; c < block.lanes; c += W) {
        const vf l = load(lse + c), del = load(delta + c);
        for (int64_t j = 0; j < n; ++j) {
          vf e = exp2(load(p + j * rb + c) - l);
          if (!whole) e = visible(c, key + j) ? e : zero();
          store(p + j * rb + c, e);
          store(dp + j * rb + c, e * (load(dp + j * rb + c) - del));
        }
      }
      if (dk) {
        const int64_t j = key - task.key_begin;
        block_gemm<false>(dv + j * ldv, ldv, p, rb, g, d, n, d, block.count, true);
        block_gemm<false>(dk + j * ldk, ldk, dp, rb, q, d, n, d, block.count, true);
      }
      if (task.dq) block_gemm<true>(dq, d, dp, rb, k.data, k.ld, block.count, d, n, key > first);
    }
    if (task.dq) {
      scale(dq, DType::F32, dq, DType::F32, task.scale, block.count * d);
      scatter(task.dq, block, dq);
    }
  }

  for (int64_t j = 0; j < key_count && task.dk && !in_place; ++j) {
    convert(task.dk.at(task.key_begin + j, 0), task.dk.dtype, dk + j * d, DType::F32, d);
    convert(task.dv.at(task.key_begin + j, 0), task.dv.dtype, dv + j * d, DType::F32, d);
  }
}

}  // namespace lorashard::LORASHARD_TARGET
