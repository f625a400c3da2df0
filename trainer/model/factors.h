// The values of a LoRA adapter (Hu et al. 2021) on one rank: for each adapted layer W(out,in),
// A(lora_rank,in) and B(out,lora_rank) with h = W x + scaling B A x. All lie in one flat fp32
// buffer (trainer/model/adapter_layout.h), replicated on every rank. Gradients and moments, which
// only training has, lie in buffers of their own (trainer/run/training_buffers.h).
#pragma once

#include <string>
#include <vector>

#include "checkpoint/base_model.h"
#include "kernels/stream.h"
#include "trainer/model/adapter_layout.h"

namespace lorashard {

// Owns the values, on the stream's device, and the layout: a LoraModule lives as long as this.
class Factors {
 public:
  Factors(Stream& stream, AdapterLayout layout);

  const AdapterLayout& layout() const { return layout_; }
  const std::vector<LoraModule>& modules() const { return layout_.modules; }
  int64_t size() const { return layout_.size; }
  float* values() const { return values_.as<float>(); }
  // The module of this name, or null.
  const LoraModule* find(const std::string& name) const;
  // The tensor that stands for the base's tensor of this name, or null.
  const AdapterTensor* find_trained(const std::string& name) const;
  // TrainedTensor::rows of a tensor of kind Base, on the stream's device.
  const int32_t* device_rows(const AdapterTensor& t) const;

  // This rank's block of a module's A, or of a piece of its B, within one of the flat buffers.
  static Matrix local_a(const LoraModule& m, float* flat) { return local_block(m.a, flat); }
  static Matrix local_b(const LoraModule& m, float* flat, size_t piece) {
    return local_block(m.b, flat, piece);
  }

  // A ~ U(-1/sqrt(in), 1/sqrt(in)) (torch's kaiming_uniform_ with a = sqrt 5, as in PEFT), of an
  // embedding A ~ N(0, 1), B = 0; a function of (seed, module, element). Trained tensors are those
  // of `base`.
  void initialize(uint64_t seed, const BaseModel& base);
  // Copies values in and out. REQUIRES: the adapter has the layout's tensors, in its order.
  void load(const Adapter& adapter) { write_values(values(), adapter); }
  Adapter to_adapter() const { return {read_values(values()), layout_.config}; }
  // Copies one of the flat buffers to the host and from it: as it lies, or tensor by tensor as
  // files have them.
  std::vector<float> read(const float* flat) const;
  void write(float* flat, const std::vector<float>& host);
  AdapterValues read_values(const float* flat) const;
  void write_values(float* flat, const AdapterValues& host);

 private:
  AdapterLayout layout_;
  Stream* stream_;
  Buffer values_;
  Buffer rows_;  // of all trained tensors, one after the other
};

}  // namespace lorashard
