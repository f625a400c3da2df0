#include "parallel/mesh.h"

namespace lorashard {

Mesh make_mesh(Communicator& world, int tensor_degree) {
  Mesh mesh;
  mesh.world = &world;
  mesh.tp_size = tensor_degree;
  mesh.tp_rank = world.rank() % tensor_degree;
  mesh.dp_size = world.size() / tensor_degree;
  mesh.dp_rank = world.rank() / tensor_degree;
  mesh.tensor = world.split(mesh.dp_rank);
  return mesh;
}

void form_data_groups(Mesh& mesh) { mesh.data = mesh.world->split(mesh.tp_rank); }

}  // namespace lorashard
