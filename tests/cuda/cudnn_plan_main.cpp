// cuDNN's attention plans for the shapes of known models, finished without a device (over
// driver_double.c), and their workspace sizes, which the memory plan reads from
// cudnn_workspaces.json. `--record` writes that file anew. Plans of another cuDNN are made too, but
// not compared.
#include <cudnn.h>
#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <iostream>

#include "kernels/cuda/cudnn_graph.h"
#include "tests/cuda/device_properties.h"

namespace lorashard {
namespace {

using Json = nlohmann::ordered_json;

const char kRecord[] = LORASHARD_SOURCE_DIR "/tests/cuda/cudnn_workspaces.json";

struct Model {
  const char* name;
  int64_t heads, kv_heads, head_dim, window;
  std::vector<int64_t> tensor_degrees;
  int64_t length;
};

// Key/value heads divide among the ranks, or are one a rank.
const Model kModels[] = {
    {"Llama-3-8B", 32, 8, 128, 0, {1, 2, 8}, 8192},
    {"Llama-3-70B", 64, 8, 128, 0, {8}, 8192},
    {"Qwen3-0.6B", 16, 8, 128, 0, {2}, 4096},
    {"Gemma-3-1B local", 4, 1, 256, 512, {1}, 4096},
    {"Gemma-3-4B local", 8, 4, 256, 1024, {1}, 4096},
    {"Gemma-3-4B global", 8, 4, 256, 0, {2}, 4096},
    {"Gemma-3-27B local", 32, 16, 128, 1024, {2}, 8192},
};

std::string version() {
  const size_t v = cudnnGetVersion();
  return std::to_string(v / 10000) + "." + std::to_string(v / 100 % 100) + "." +
         std::to_string(v % 100);
}

// Bytes of workspace by device, model, degree and pass; null where cuDNN has no plan.
Json make_all() {
  Json all;
  for (const DescribedDevice& device : {kA100, kH100, kB200}) {
    Json& of_device = all["sm_" + std::to_string(device.compute_capability)];
    for (const Model& model : kModels)
      for (int64_t tp : model.tensor_degrees)
        for (bool backward : {false, true}) {
          cuda::CudnnShape shape;
          shape.batch = 1, shape.length = model.length, shape.head_dim = model.head_dim;
          shape.heads = model.heads / tp,
          shape.kv_heads = std::max<int64_t>(1, model.kv_heads / tp);
          shape.window = model.window, shape.scale = 1 / std::sqrt(float(model.head_dim));
          shape.backward = backward;
          const auto start = std::chrono::steady_clock::now();
          const cuda::CudnnPlan plan = cuda::make_cudnn_plan(cuda::contiguous(shape), device.json(),
                                                             device.compute_capability);
          const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
          std::cout << "sm_" << device.compute_capability << " " << model.name << " TP " << tp
                    << (backward ? " backward: " : " forward: ")
                    << (plan.graph ? plan.name + ", workspace " +
                                         std::to_string(plan.workspace_bytes) + " bytes"
                                   : "no plan: " + plan.problem)
                    << " (" << seconds.count() << " s)" << std::endl;
          Json& of_pass =
              of_device[std::string(model.name) + ", " + std::to_string(model.length) +
                        " tokens, TP " + std::to_string(tp)][backward ? "backward" : "forward"];
          if (plan.graph) of_pass = plan.workspace_bytes;
        }
  }
  return all;
}

TEST(CudnnPlans, AreMadeWithoutADevice) {
  if (!cuda::has_cudnn()) GTEST_SKIP() << "built without cuDNN's frontend headers";
  const Json plans = make_all();
  Json recorded;
  std::ifstream(kRecord) >> recorded;
  // What training needs most has plans whatever the version.
  for (const char* sm : {"sm_80", "sm_90", "sm_100"})
    for (const char* pass : {"forward", "backward"})
      EXPECT_TRUE(plans[sm]["Llama-3-8B, 8192 tokens, TP 1"][pass].is_number()) << sm << pass;
  if (recorded["cudnn"] != version())
    GTEST_SKIP() << "cuDNN is " << version() << ", the record is of " << recorded["cudnn"];
  EXPECT_EQ(plans, recorded["workspace_bytes"])
      << "if this is meant, run with --record and commit " << kRecord;
}

}  // namespace
}  // namespace lorashard

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (argc > 1 && std::string(argv[1]) == "--record") {
    const lorashard::Json record{{"cudnn", lorashard::version()},
                                 {"workspace_bytes", lorashard::make_all()}};
    std::ofstream(lorashard::kRecord) << record.dump(1) << "\n";
    return 0;
  }
  return RUN_ALL_TESTS();
}
