// Attention on CUDA: chooses between cuDNN and the project's own kernels.
#include <algorithm>
#include <string>

#include "configs/error.h"
#include "kernels/cuda/attention_cudnn.h"
#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/kernels.h"

namespace lorashard::cuda {
namespace {

AttentionGrid grid_of(const Sequences& sequences) {
  AttentionGrid grid;
  const auto &q = sequences.q_offsets, &k = sequences.kv_offsets;
  if (q.size() < 2) return grid;
  grid.sequences = int(q.size()) - 1;
  grid.queries = q.back();
  for (size_t i = 0; i + 1 < q.size(); ++i) {
    grid.max_queries = std::max<int64_t>(grid.max_queries, q[i + 1] - q[i]);
    grid.max_keys = std::max<int64_t>(grid.max_keys, k[i + 1] - k[i]);
  }
  return grid;
}

// Whether rows and heads begin at multiples of 16 bytes.
bool allows_vectors(ConstMatrix m, int64_t head_dim) {
  if (!m) return true;
  const int64_t size = size_of(m.dtype);
  return reinterpret_cast<uintptr_t>(m.data) % 16 == 0 && m.ld * size % 16 == 0 &&
         head_dim * size % 16 == 0;
}

struct Pass {
  Matrix write_o, write_lse, dq, dk, dv;
  ConstMatrix d_o, q, k, v, o, lse;
};

template <class T>
AttentionArgs<T> args_of(const Pass& x, float* delta, const Sequences& sequences,
                         const AttentionShape& shape) {
  const auto in = [](ConstMatrix m) { return Rows<const T>{static_cast<const T*>(m.data), m.ld}; };
  const auto out = [](Matrix m) { return Rows<T>{static_cast<T*>(m.data), m.ld}; };
  AttentionArgs<T> a{};
  a.q = in(x.q), a.k = in(x.k), a.v = in(x.v), a.o = in(x.o), a.d_o = in(x.d_o);
  a.write_o = out(x.write_o), a.dq = out(x.dq), a.dk = out(x.dk), a.dv = out(x.dv);
  a.lse = {static_cast<const float*>(x.lse.data), x.lse.ld};
  a.write_lse = {static_cast<float*>(x.write_lse.data), x.write_lse.ld};
  a.delta = {delta, shape.heads};
  a.q_offsets = sequences.device_q_offsets, a.kv_offsets = sequences.device_kv_offsets;
  a.heads = int(shape.heads), a.kv_heads = int(shape.kv_heads);
  a.head_dim = int(shape.head_dim);
  a.group = int(shape.group), a.group_offset = int(shape.group_offset);
  a.window = shape.window > 0 ? int(std::min<int64_t>(shape.window, INT32_MAX)) : INT32_MAX;
  a.scale = shape.scale;
  a.vectors = true;
  for (const ConstMatrix& m : {x.q, x.k, x.v, x.o, x.d_o, ConstMatrix(x.write_o), ConstMatrix(x.dq),
                               ConstMatrix(x.dk), ConstMatrix(x.dv)})
    a.vectors = a.vectors && allows_vectors(m, shape.head_dim);
  return a;
}

template <class T>
void run_own(Stream& stream, const Pass& x, const Sequences& sequences,
             const AttentionShape& shape) {
  const AttentionGrid grid = grid_of(sequences);
  const bool backward(x.d_o);
  float* delta = nullptr;
  if (backward)
    delta = static_cast<float*>(
        stream.scratch(ScratchSlot::Attention, size_t(grid.queries * shape.heads) * sizeof(float)));
  if (stream.reserving()) return;
  const AttentionArgs<T> args = args_of<T>(x, delta, sequences, shape);
  if (backward)
    own_backward(stream_of(stream), args, grid);
  else
    own_forward(stream_of(stream), args, grid);
}

// What neither kernel can do. REQUIRES: offsets on the device, all types as the contract says.
void check_limits(const Pass& x, const Sequences& sequences, const AttentionShape& shape) {
  if (shape.head_dim > kMaxHeadDim)
    fail_run("attention on CUDA", "head_dim is " + std::to_string(shape.head_dim) + ", at most " +
                                      std::to_string(kMaxHeadDim) +
                                      " are possible; use backend: CPU");
  const int64_t heads = std::min(shape.group, shape.heads);
  if (grid_of(sequences).max_queries * heads * heads >= int64_t{1} << 31)
    fail_run("attention on CUDA", "a sequence of " +
                                      std::to_string(grid_of(sequences).max_queries) +
                                      " tokens is too long; use a smaller seq_len");
  if (x.q.dtype != DType::BF16 && x.q.dtype != DType::F32)
    fail_run("attention on CUDA",
             std::string(name_of(x.q.dtype)) + " is not possible, F32 and BF16 are");
  if (sequences.q_offsets.size() > 1 &&
      (!sequences.device_q_offsets || !sequences.device_kv_offsets))
    fail_run("attention on CUDA", "the offsets of the sequences are not on the device");
}

// cuDNN's view of a call, and why cuDNN cannot serve it (empty if its plan decides).
struct CudnnPass {
  CudnnShape shape;
  std::array<void*, kCudnnTensors> tensors{};
  std::string problem;
};

// By the shape alone; empty if cuDNN may serve it.
std::string cudnn_problem(DType type, int64_t length, const AttentionShape& shape) {
  if (!has_cudnn()) return "this program was built without cuDNN";
  if (type != DType::BF16) return "cuDNN is used for BF16 only";
  if (length % kCudnnLengths != 0)
    return "the length is no multiple of " + std::to_string(kCudnnLengths);
  if (shape.head_dim % 8 != 0) return "head_dim is no multiple of 8";
  const bool whole_groups = shape.group_offset == 0 && shape.heads == shape.kv_heads * shape.group;
  if (!whole_groups && shape.kv_heads != 1) return "this rank has parts of groups of heads";
  return {};
}

CudnnShape cudnn_shape(const AttentionShape& shape, int64_t batch, int64_t length) {
  CudnnShape s;
  s.batch = batch, s.length = length;
  s.heads = shape.heads, s.kv_heads = shape.kv_heads, s.head_dim = shape.head_dim;
  s.window = shape.window, s.scale = shape.scale;
  return s;
}

// Of matrices without gaps between rows.
CudnnShape packed_shape(const AttentionShape& shape, int64_t batch, int64_t length, bool backward) {
  CudnnShape s = cudnn_shape(shape, batch, length);
  s.backward = backward;
  return contiguous(s);
}

CudnnPass cudnn_pass(const Pass& x, const Sequences& sequences, const AttentionShape& shape) {
  CudnnPass pass;
  const auto &q = sequences.q_offsets, &k = sequences.kv_offsets;
  const int64_t batch = int64_t(q.size()) - 1, length = batch > 0 ? q[1] - q[0] : 0;
  if (length == 0) return pass.problem = "there is nothing to do", pass;
  for (int64_t i = 0; i <= batch; ++i)
    if (q[size_t(i)] != i * length || k[size_t(i)] != i * length)
      return pass.problem = "the sequences are not equally long", pass;
  pass.problem = cudnn_problem(x.q.dtype, length, shape);
  if (!pass.problem.empty()) return pass;
  pass.shape = cudnn_shape(shape, batch, length);
  pass.shape.backward = bool(x.d_o);
  pass.shape.keep_lse = bool(x.write_lse);
  const ConstMatrix matrices[kCudnnTensors] = {
      x.q, x.k, x.v, x.d_o ? x.o : ConstMatrix(x.write_o), x.d_o, x.dq, x.dk, x.dv};
  for (size_t i = 0; i < kCudnnTensors; ++i) {
    if (!allows_vectors(matrices[i], shape.head_dim))
      return pass.problem = "rows are not aligned to 16 bytes", pass;
    pass.shape.ld[i] = matrices[i] ? matrices[i].ld : 0;
    pass.tensors[i] = const_cast<void*>(matrices[i].data);
  }
  return pass;
}

// True if cuDNN did it.
bool run_cudnn(Stream& stream, const Pass& x, const Sequences& sequences,
               const AttentionShape& shape) {
  const CudnnPass pass = cudnn_pass(x, sequences, shape);
  if (!pass.problem.empty()) return false;
  const CudnnPlan& plan = cudnn_plan(stream, pass.shape);
  if (!plan.graph) return false;
  // A plan of another length may want more than what was reserved: a step allocates nothing.
  const size_t bytes = cudnn_scratch_bytes(plan, pass.shape);
  if (bytes > stream.reserved_bytes(ScratchSlot::Attention)) return false;
  void* scratch = stream.scratch(ScratchSlot::Attention, bytes);
  if (stream.reserving()) return true;
  const ConstMatrix lse = x.d_o ? x.lse : ConstMatrix(x.write_lse);
  cudnn_run(stream, plan, pass.shape, pass.tensors,
            static_cast<float*>(const_cast<void*>(lse.data)), lse.ld, scratch);
  return true;
}

void run(Stream& stream, const Pass& x, const Sequences& sequences, const AttentionShape& shape) {
  check_limits(x, sequences, shape);
  use_device(stream);
  if (run_cudnn(stream, x, sequences, shape)) return;
  if (x.q.dtype == DType::BF16)
    run_own<__nv_bfloat16>(stream, x, sequences, shape);
  else
    run_own<float>(stream, x, sequences, shape);
}

}  // namespace

void attention_forward(Stream& stream, Matrix o, Matrix lse, ConstMatrix q, ConstMatrix k,
                       ConstMatrix v, const Sequences& sequences, const AttentionShape& shape) {
  Pass x;
  x.write_o = o, x.write_lse = lse, x.q = q, x.k = k, x.v = v;
  run(stream, x, sequences, shape);
}

void attention_backward(Stream& stream, Matrix dq, Matrix dk, Matrix dv, ConstMatrix d_o,
                        ConstMatrix q, ConstMatrix k, ConstMatrix v, ConstMatrix o, ConstMatrix lse,
                        const Sequences& sequences, const AttentionShape& shape) {
  Pass x;
  x.dq = dq, x.dk = dk, x.dv = dv, x.d_o = d_o;
  x.q = q, x.k = k, x.v = v, x.o = o, x.lse = lse;
  run(stream, x, sequences, shape);
}

void prepare_attention(Stream& stream, DType type, const AttentionShape& shape, int64_t sequences,
                       int64_t length) {
  use_device(stream);
  if (!cudnn_problem(type, length, shape).empty()) return;
  size_t bytes = size_t(sequences * length * shape.heads) * sizeof(float);
  for (const bool backward : {false, true}) {
    const CudnnShape s = packed_shape(shape, sequences, length, backward);
    const CudnnPlan& plan = cudnn_plan(stream, s);
    if (plan.graph) bytes = std::max(bytes, cudnn_scratch_bytes(plan, s));
  }
  (void)stream.scratch(ScratchSlot::Attention, bytes);
}

std::string attention_choice(Stream& stream, DType type, const AttentionShape& shape,
                             int64_t sequences, int64_t length) {
  use_device(stream);
  const std::string own = type == DType::BF16 ? "own kernel (tensor cores)" : "own kernel (fp32)";
  const std::string problem = cudnn_problem(type, length, shape);
  if (!problem.empty()) return "attention: " + own + ": " + problem;
  const auto choose = [&](bool backward) -> std::string {
    const CudnnPlan& plan = cudnn_plan(stream, packed_shape(shape, sequences, length, backward));
    if (!plan.graph) return own + " (" + plan.problem + ")";
    return cudnn_name() + " (" + plan.name + ")";
  };
  const std::string forward = choose(false), backward = choose(true);
  return "attention: forward by " + forward + ", backward by " + backward;
}

}  // namespace lorashard::cuda
