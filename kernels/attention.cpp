#include "kernels/attention.h"

#include <cassert>
#include <vector>

#include "kernels/cpu/attention_task.h"
#include "kernels/cpu/table.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/parallel_for.h"
#include "kernels/profile.h"

namespace lorashard {
namespace {

// Keys seen by all rows of a sequence and head group together: the cost of a task, up to a factor.
double area(const AttentionTask& t) {
  const double per_head = double(t.queries) * (double(t.keys) - 0.5 * double(t.queries));
  return double(t.heads) * per_head;
}

// The operands of forward or backward; those that it does not have are empty.
struct Tensors {
  ConstMatrix q, k, v, o, lse, d_o;
  Matrix write_o, write_lse, dq, dk, dv;
};

// A task for every sequence and key/value head, covering all its rows and keys.
std::vector<AttentionTask> whole_tasks(const Tensors& x, const Sequences& sequences,
                                       const AttentionShape& shape) {
  std::vector<AttentionTask> tasks;
  const int64_t d = shape.head_dim;
  for (size_t s = 0; s + 1 < sequences.q_offsets.size(); ++s) {
    const int64_t q0 = sequences.q_offsets[s], queries = sequences.q_offsets[s + 1] - q0;
    const int64_t k0 = sequences.kv_offsets[s], keys = sequences.kv_offsets[s + 1] - k0;
    assert(queries <= keys);
    for (int64_t kv = 0; kv < shape.kv_heads; ++kv) {
      const int64_t first = std::max<int64_t>(kv * shape.group - shape.group_offset, 0);
      const int64_t last = std::min((kv + 1) * shape.group - shape.group_offset, shape.heads);
      const int64_t heads = std::max<int64_t>(last - first, 0);
      const auto query_block = [&](auto m) {
        return m ? m.block(q0, queries, first * d, heads * d) : m;
      };
      const auto key_block = [&](auto m) { return m ? m.block(k0, keys, kv * d, d) : m; };
      const auto head_block = [&](auto m) { return m ? m.block(q0, queries, first, heads) : m; };
      AttentionTask t{};
      t.heads = heads, t.head_dim = d, t.queries = queries, t.keys = keys;
      t.row_begin = 0, t.row_end = queries * heads, t.key_begin = 0, t.key_end = keys;
      t.scale = shape.scale, t.window = shape.window;
      t.q = query_block(x.q), t.k = key_block(x.k), t.v = key_block(x.v);
      t.o = query_block(x.o), t.lse = head_block(x.lse), t.d_o = query_block(x.d_o);
      t.write_o = query_block(x.write_o), t.write_lse = head_block(x.write_lse);
      t.dq = query_block(x.dq), t.dk = key_block(x.dk), t.dv = key_block(x.dv);
      tasks.push_back(t);
    }
  }
  return tasks;
}

// Time of the last thread to finish when each task goes to the first free thread, over the time
// of a perfect split.
double imbalance(const std::vector<AttentionTask>& tasks, int threads) {
  std::vector<double> busy(static_cast<size_t>(threads));
  double total = 0;
  for (const AttentionTask& t : tasks) {
    *std::min_element(busy.begin(), busy.end()) += area(t);
    total += area(t);
  }
  return total > 0 ? *std::max_element(busy.begin(), busy.end()) * threads / total : 1;
}

void longest_first(std::vector<AttentionTask>& tasks) {
  std::stable_sort(tasks.begin(), tasks.end(), [](const AttentionTask& a, const AttentionTask& b) {
    return area(a) > area(b);
  });
}

void run(Stream& stream, const std::vector<AttentionTask>& tasks, bool backward) {
  if (tasks.empty()) return;
  const CpuKernels& cpu = cpu_kernels();
  int64_t floats = 0;
  for (const AttentionTask& t : tasks) floats = std::max(floats, attention_scratch(t, backward));
  floats = (floats + 15) / 16 * 16;
  const int threads = int(std::min<int64_t>(stream.threads(), int64_t(tasks.size())));
  auto* scratch = static_cast<float*>(
      stream.scratch(ScratchSlot::Attention, size_t(floats) * size_t(threads) * sizeof(float)));
  parallel_tasks(stream, int64_t(tasks.size()), [&](int64_t i, int thread) {
    (backward ? cpu.attention_backward : cpu.attention_forward)(tasks[size_t(i)],
                                                                scratch + thread * floats);
  });
}

// Multiply-adds of one GEMM over all (query, key) pairs that attention looks at, as flops.
double pair_flops(ConstMatrix q, const Sequences& s, const AttentionShape& shape) {
  double pairs = 0;
  for (size_t i = 0; i + 1 < s.q_offsets.size(); ++i) {
    const int64_t keys = s.kv_offsets[i + 1] - s.kv_offsets[i];
    pairs += attention_pairs(s.q_offsets[i + 1] - s.q_offsets[i], keys, shape.window);
  }
  return 2 * pairs * double(q.cols);
}

}  // namespace

double attention_pairs(int64_t queries, int64_t keys, int64_t window) {
  // Query i of n sees keys - n + i + 1 keys, at most `window`.
  const double n = double(queries), before = double(keys - queries);
  if (window <= 0 || window >= keys) return n * before + n * (n + 1) / 2;
  const double w = double(window);
  const double growing = std::clamp(w - before, 0.0, n);  // queries that see less than w keys
  return growing * before + growing * (growing + 1) / 2 + (n - growing) * w;
}

void attention_forward(Stream& stream, Matrix o, Matrix lse, ConstMatrix q, ConstMatrix k,
                       ConstMatrix v, const Sequences& sequences, const AttentionShape& shape) {
  // q k^T and p v.
  if (stream.recording())
    return void(stream.record("attention_forward",
                              {traffic(o, q, k, v), 2 * pair_flops(q, sequences, shape), q.dtype}));
  LORASHARD_RETURN_ON_CUDA_WITH_SCRATCH(
      stream, attention_forward(stream, o, lse, q, k, v, sequences, shape));
  const ProfileSpan span("kernel", "attention_forward");
  // Rows are independent: a task is one block of rows, the last and longest first.
  std::vector<AttentionTask> tasks;
  const Tensors tensors{.q = q,
                        .k = k,
                        .v = v,
                        .o = {},
                        .lse = {},
                        .d_o = {},
                        .write_o = o,
                        .write_lse = lse,
                        .dq = {},
                        .dk = {},
                        .dv = {}};
  for (const AttentionTask& whole : whole_tasks(tensors, sequences, shape))
    for (int64_t end = whole.row_end; end > 0;) {
      AttentionTask t = whole;
      t.row_begin = (end - 1) / kRowBlock * kRowBlock;
      t.row_end = end;
      end = t.row_begin;
      tasks.push_back(t);
    }
  run(stream, tasks, false);
}

void attention_backward(Stream& stream, Matrix dq, Matrix dk, Matrix dv, ConstMatrix d_o,
                        ConstMatrix q, ConstMatrix k, ConstMatrix v, ConstMatrix o, ConstMatrix lse,
                        const Sequences& sequences, const AttentionShape& shape) {
  // q k^T again, d_o v^T, and the gradients of q, k and v. Where few heads meet many threads the
  // CPU does seven GEMMs (below); not counted.
  if (stream.recording())
    return void(stream.record(
        "attention_backward",
        {traffic(dq, dk, dv, d_o, q, k, v, o), 5 * pair_flops(q, sequences, shape), q.dtype}));
  LORASHARD_RETURN_ON_CUDA_WITH_SCRATCH(
      stream, attention_backward(stream, dq, dk, dv, d_o, q, k, v, o, lse, sequences, shape));
  const ProfileSpan span("kernel", "attention_backward");
  const Tensors tensors{.q = q,
                        .k = k,
                        .v = v,
                        .o = o,
                        .lse = lse,
                        .d_o = d_o,
                        .write_o = {},
                        .write_lse = {},
                        .dq = dq,
                        .dk = dk,
                        .dv = dv};
  std::vector<AttentionTask> tasks = whole_tasks(tensors, sequences, shape);
  longest_first(tasks);
  // One task for a sequence and head does five GEMMs a block. Split into tasks over the keys and
  // tasks over the rows it does seven, but gives any number of threads work. Both form each sum
  // in the same order, so the results are the same bits.
  constexpr double kSplitCost = 7.0 / 5.0;
  if (imbalance(tasks, stream.threads()) > kSplitCost) {
    std::vector<AttentionTask> parts;
    for (const AttentionTask& whole : tasks) {
      for (int64_t key = 0; key < whole.key_end; key += kKeyBlock) {
        AttentionTask t = whole;
        t.key_begin = key, t.key_end = std::min(key + kKeyBlock, whole.key_end);
        t.dq = {};
        parts.push_back(t);
      }
      for (int64_t end = whole.row_end; end > 0;) {
        AttentionTask t = whole;
        t.row_begin = (end - 1) / kRowBlock * kRowBlock, t.row_end = end;
        t.dk = t.dv = {};
        end = t.row_begin;
        parts.push_back(t);
      }
    }
    tasks.swap(parts);
  }
  run(stream, tasks, true);
}

void prepare_attention([[maybe_unused]] Stream& stream, [[maybe_unused]] DType type,
                       [[maybe_unused]] const AttentionShape& shape,
                       [[maybe_unused]] int64_t sequences, [[maybe_unused]] int64_t length) {
  LORASHARD_RETURN_ON_CUDA_WITH_SCRATCH(stream,
                                        prepare_attention(stream, type, shape, sequences, length));
}

std::string attention_choice([[maybe_unused]] Stream& stream, [[maybe_unused]] DType type,
                             [[maybe_unused]] const AttentionShape& shape,
                             [[maybe_unused]] int64_t sequences, [[maybe_unused]] int64_t length) {
  LORASHARD_RETURN_ON_CUDA_WITH_SCRATCH(stream,
                                        attention_choice(stream, type, shape, sequences, length));
  return "attention: blocked, on the CPU";
}

}  // namespace lorashard
