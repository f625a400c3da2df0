// What DoRA (Liu et al. 2024) derives from a rank's part of W, A, B and the magnitudes m: with
// norms ||W + scaling B A|| of rows, a module's output is scale (W x + scaling B A x), scale = m /
// norm. The norms are constants to the gradient, as in the paper and in PEFT.
//
// They change when the factors do: once after loading and once in an optimizer step. Modules whose
// inputs are split have a part of each norm on every rank; all of these are summed in one small
// all-reduce over the tensor-parallel group (label dora_norms), also once a step. Layers need none.
#pragma once

#include <vector>

#include "parallel/collectives.h"
#include "trainer/model/weights.h"

namespace lorashard {

class DoraNorms {
 public:
  // Lays out for the DoRA modules of `weights` and points them at what update() will fill. All
  // outlive this. Not collective.
  DoraNorms(Stream& stream, ModelWeights& weights, const Factors& factors, Communicator& tensor);
  // After factors have changed. Enqueued. Collective over the tensor-parallel group.
  void update();
  // Gives new factors their magnitudes, the norms. Collective over the tensor-parallel group.
  void initialize_magnitudes();

 private:
  // One module: its vectors (1,N) of this rank's outputs.
  struct Place {
    Linear* linear;
    Matrix base, squares;
  };
  void form_norms();

  Stream& stream_;
  const Factors& factors_;
  Communicator& tensor_;
  std::vector<Place> places_;  // column-parallel modules, then the row-parallel ones
  Buffer memory_;
  Matrix partial_;   // (1,n) squares of the row-parallel modules
  Matrix products_;  // (R,N) A W^T of one module
  Matrix gram_;      // (R,R)
};

}  // namespace lorashard
