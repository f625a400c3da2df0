#include "trainer/run/collective_trace.h"

#include <nlohmann/json.hpp>

namespace lorashard {

void CollectiveTrace::attach(const Mesh& mesh) {
  mesh_ = &mesh;
  mesh.world->set_trace(&world_);
  mesh.tensor->set_trace(&tensor_);
  if (mesh.data) mesh.data->set_trace(&data_);
}

void CollectiveTrace::detach() {
  if (!mesh_) return;
  mesh_->world->set_trace(nullptr);
  mesh_->tensor->set_trace(nullptr);
  if (mesh_->data) mesh_->data->set_trace(nullptr);
  mesh_ = nullptr;
}

void CollectiveTrace::write(const fs::path& run_dir) const {
  std::string text;
  const auto add = [&](const char* group, const std::vector<CollectiveCall>& calls) {
    for (const CollectiveCall& c : calls) {
      const nlohmann::ordered_json line{
          {"group", group}, {"operation", c.operation}, {"label", c.label}, {"bytes", c.bytes}};
      text += line.dump() + "\n";
    }
  };
  add("world", world_);
  add("tensor", tensor_);
  add("data", data_);
  write_file_atomic(run_dir / "trace-collectives.jsonl", text);
}

}  // namespace lorashard
