#include "checkpoint/inspect.h"

#include "checkpoint/adapter.h"
#include "checkpoint/base_inspect.h"
#include "checkpoint/training_state.h"
#include "configs/error.h"

namespace lorashard {

std::vector<std::string> inspect(const std::string& path, Communicator& world) {
  std::error_code ignored;
  if (!fs::exists(path, ignored)) {
    fail_input(path,
               "does not exist; give the folder of a model, base shard set, adapter, "
               "checkpoint or run");
  }
  if (is_checkpoint(path)) return inspect_checkpoint(path);
  if (fs::exists(fs::path(path) / "adapter_config.json", ignored)) return inspect_adapter(path);
  if (fs::exists(fs::path(path) / "config.json", ignored)) return inspect_base(path, world);
  // A run: its newest checkpoint.
  const fs::path latest = fs::path(path) / "checkpoints" / "latest";
  if (fs::exists(latest, ignored)) {
    std::string name = read_text(latest);
    while (!name.empty() && name.back() == '\n') name.pop_back();
    return inspect_checkpoint(fs::path(path) / "checkpoints" / name);
  }
  fail_input(path,
             "is no model (config.json), base shard set (manifest.textproto), adapter "
             "(adapter_config.json), checkpoint or run");
}

}  // namespace lorashard
