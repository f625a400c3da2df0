// The DP x TP mesh. World rank w has tensor-parallel rank w % tensor and data-parallel rank
// w / tensor, so that a tensor-parallel group is made of neighbours, which mpirun puts on one host.
#pragma once

#include <memory>

#include "parallel/collectives.h"

namespace lorashard {

struct Mesh {
  Communicator* world = nullptr;         // not owned
  std::unique_ptr<Communicator> tensor;  // the ranks that share the shards of one replica
  // The ranks of all replicas that hold the same shards. Only full fine-tuning makes it.
  std::unique_ptr<Communicator> data;
  int tp_rank = 0, tp_size = 1;
  int dp_rank = 0, dp_size = 1;
};

// REQUIRES: world.size() is a multiple of tensor_degree. Collective.
Mesh make_mesh(Communicator& world, int tensor_degree);
// Fills mesh.data. Collective.
void form_data_groups(Mesh& mesh);

}  // namespace lorashard
