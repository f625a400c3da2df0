// The LoRA factors (Hu et al. 2021): for each adapted layer W(out,in), A(r,in) and B(out,r) with
// h = W x + scaling B A x. All factors lie in one flat fp32 buffer, replicated on every rank; their
// gradients lie in one of the same shape, zero outside this rank's block where a factor is sliced.
//
// One list, Factors::modules, drives initialisation, reduction, optimizer, saving and export.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/adapter.h"
#include "checkpoint/model_config.h"
#include "kernels/stream.h"
#include "kernels/tensor.h"
#include "parallel/shard.h"

namespace lorashard {

struct LoraModule {
  LinearModule linear;
  int64_t rank = 0;
  double alpha = 0;
  float scaling = 0;
  int64_t a_offset = 0, b_offset = 0;  // floats from the start of a flat buffer
  Range a_cols, b_rows;                // this rank's block: row-parallel layers cut A, others cut B
  uint32_t site = 0;                   // number of the module in the whole model, for randomness
  int64_t size() const { return rank * (linear.in_features + linear.out_features); }
};

// Flat buffers of n floats, on the stream's device. The gradient buffer has `tail` more floats
// behind it, which travel in the same reduction (loss, token count, signals).
class Factors {
 public:
  // Modules of layers that share an input (q k v; gate up) have their A factors one after the
  // other, so that one product serves them all. `config` is kept for saving.
  // REQUIRES: modules is a subset of linear_modules(model).
  Factors(Stream& stream, const ModelConfig& model, const std::vector<LinearModule>& modules,
          const AdapterConfig& config, int tp_rank, int tp_size, int64_t tail);

  const std::vector<LoraModule>& modules() const { return modules_; }
  const AdapterConfig& config() const { return config_; }
  int64_t size() const { return size_; }
  int64_t tail() const { return tail_; }
  float* values() const { return values_.as<float>(); }
  float* gradients() const { return gradients_.as<float>(); }
  float* first_moments() const { return first_moments_.as<float>(); }
  float* second_moments() const { return second_moments_.as<float>(); }
  // One number, for the optimizer, behind the gradients' tail: one copy brings both to the host.
  double* squares() const { return reinterpret_cast<double*>(gradients() + squares_offset()); }
  int64_t squares_offset() const { return (size_ + tail_ + 1) / 2 * 2; }
  // The module of this name, or null.
  const LoraModule* find(const std::string& name) const;

  // A(r,in) and B(out,r) of a module within one of the flat buffers, whole or this rank's block.
  static Matrix a(const LoraModule& m, float* flat) {
    return matrix(flat + m.a_offset, m.rank, m.linear.in_features, DType::F32);
  }
  static Matrix b(const LoraModule& m, float* flat) {
    return matrix(flat + m.b_offset, m.linear.out_features, m.rank, DType::F32);
  }
  static Matrix local_a(const LoraModule& m, float* flat) {
    return a(m, flat).col_range(m.a_cols.begin, m.a_cols.size());
  }
  static Matrix local_b(const LoraModule& m, float* flat) {
    return b(m, flat).row_range(m.b_rows.begin, m.b_rows.size());
  }

  // A ~ U(-1/sqrt(in), 1/sqrt(in)) (torch's kaiming_uniform_ with a = sqrt 5, as in PEFT), B = 0; a
  // function of (seed, module, element).
  void initialize(uint64_t seed);
  // Copies factor values in and out. REQUIRES: the adapter has the same modules and shapes.
  void load(const Adapter& adapter);
  Adapter to_adapter() const;
  // Copies one of the flat buffers (size() floats) to the host and from it.
  std::vector<float> read(const float* flat) const;
  void write(float* flat, const std::vector<float>& host);

 private:
  AdapterConfig config_;
  std::vector<LoraModule> modules_;
  int64_t size_ = 0, tail_ = 0;
  Stream* stream_;
  Buffer values_, gradients_, first_moments_, second_moments_;
};

}  // namespace lorashard
