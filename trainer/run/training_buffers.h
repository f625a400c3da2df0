// What training allocates beside an adapter's values: gradients, moments and the space of a step's
// message. Flat fp32 buffers of one AdapterLayout, owned, on the stream's device.
#pragma once

#include "kernels/adamw.h"
#include "kernels/stream.h"
#include "kernels/tensor.h"
#include "trainer/run/step_message.h"

namespace lorashard {

class TrainingBuffers {
 public:
  // `size`: AdapterLayout::size.
  TrainingBuffers(Stream& stream, int64_t size, int world_size)
      : size_(size),
        message_floats_(StepMessage::floats(world_size)),
        gradients_(stream, bytes(squares_offset() + 2)),
        first_moments_(stream, bytes(size)),
        second_moments_(stream, bytes(size)) {
    stream.reserve_for([&] { sum_of_squares(stream, squares(), gradients(), size_); });
  }

  int64_t size() const { return size_; }
  // Of the sum of losses over this rank's unmasked tokens; zero outside this rank's blocks. After
  // the step's all-reduce: of the whole batch, the same on all ranks.
  float* gradients() const { return gradients_.as<float>(); }
  // AdamW's, the same on all ranks.
  float* first_moments() const { return first_moments_.as<float>(); }
  float* second_moments() const { return second_moments_.as<float>(); }

  // Behind the gradients, and in one all-reduce with them: the step's message.
  float* message() const { return gradients() + size_; }
  int64_t message_floats() const { return message_floats_; }
  Matrix gradients_and_message() const {
    return matrix(gradients(), 1, size_ + message_floats_, DType::F32);
  }
  // Behind the message, 8-byte aligned, and in one copy to the host with it: the sum of the squares
  // of the all-reduced gradient. The copy is of floats_to_host() from message() on, its last two
  // floats this double.
  double* squares() const { return reinterpret_cast<double*>(gradients() + squares_offset()); }
  int64_t floats_to_host() const { return squares_offset() + 2 - size_; }

 private:
  int64_t squares_offset() const { return (size_ + message_floats_ + 1) / 2 * 2; }
  static size_t bytes(int64_t floats) { return size_t(floats) * sizeof(float); }

  int64_t size_, message_floats_;
  Buffer gradients_, first_moments_, second_moments_;
};

}  // namespace lorashard
