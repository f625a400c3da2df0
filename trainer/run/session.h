// How train, eval and generate begin: the ranks agree on their settings and a backend, open the
// base and what the command reads beside it, form the mesh, and load the model.
//
// Every rank goes through the same phases in the same order; what a rank checks alone stands in
// run_agreed (parallel/agree.h), so that an error ends all of them before anything is printed.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/adapter.h"
#include "checkpoint/base_model.h"
#include "parallel/mesh.h"
#include "trainer/model/model.h"
#include "trainer/run/agreed_inputs.h"
#include "trainer/run/compute.h"
#include "trainer/run/console.h"

namespace lorashard {

struct SessionOptions {
  std::vector<Setting> settings;  // that the ranks must have alike
  RunConfig::Compute::Backend::Value backend = RunConfig::Compute::Backend::AUTO;
  std::string backend_where;                             // that setting's place, for errors
  int64_t threads = 0;                                   // of each rank; 0: choose_threads
  std::optional<int64_t> peer_timeout_s = std::nullopt;  // parallel.timeout_s
};
// Of a configuration, with the command's own options among the settings.
SessionOptions session_options(const Config& config, const std::vector<Setting>& more);

// Outlives the models, factors and buffers made on its stream.
struct Session {
  // Errors (status 2, on every rank): ranks that differ in a setting; as choose_device. Collective.
  Session(const Ranks& ranks, const SessionOptions& options);

  // Opens the base, for tp_size ranks that share each layer. To be called within run_agreed.
  // Errors (status 2): as BaseModel::open; at `tp_where`, more ranks than the base has query heads.
  void open_base(const std::string& path, int64_t tp_size, const std::string& tp_where);
  // That a base whose positions are learned has enough of them. To be called within run_agreed.
  // Error (status 2): at `where`, naming `setting`, which asks for `positions`.
  void check_positions(int64_t positions, const std::string& where,
                       const std::string& setting) const;
  // Fills base_digest, on which the ranks must agree (BaseModel::digest). Collective.
  void digest_base() { base_digest = base->digest(ranks.world); }
  // Fills mesh. REQUIRES: tp_size divides the ranks. Collective.
  void form_mesh(int64_t tp_size) { mesh = make_mesh(world, int(tp_size)); }

  const Ranks ranks;
  const DeviceChoice device;
  Compute compute;
  Stream& stream;       // of compute
  Communicator& world;  // of compute: reduces the stream's memory; ranks.world only the host's
  Console console;      // of the first rank
  std::unique_ptr<const BaseModel> base;
  std::string base_digest;
  Mesh mesh;

  // The rank that prints and writes files.
  bool first() const { return world.rank() == 0; }
};

// A model and this rank's shards of the frozen weights, to which it refers.
struct LoadedModel {
  LoadedModel(Session& session, Factors* factors, float* gradients, const ModelOptions& options);
  LoadedModel(Session& session, ModelWeights weights, const ModelOptions& options);
  ModelWeights weights;
  Model model;
};
// `factors` and `gradients` as of Model; they outlive it, as the session does. Errors are those of
// all ranks. REQUIRES: the session has base and mesh. Collective.
std::unique_ptr<LoadedModel> load_model(Session& session, Factors* factors, float* gradients,
                                        const ModelOptions& options);
// On weights that are in memory already.
std::unique_ptr<LoadedModel> load_model(Session& session, ModelWeights weights,
                                        const ModelOptions& options);

// An adapter that was read, on the stream's device. REQUIRES: it fits the model.
Factors factors_of(Stream& stream, const ModelConfig& model, const Adapter& adapter,
                   const Mesh& mesh);

}  // namespace lorashard
