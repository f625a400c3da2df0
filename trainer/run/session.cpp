#include "trainer/run/session.h"

#include <fmt/format.h>

#include "configs/error.h"
#include "parallel/agree.h"
#include "parallel/liveness.h"

namespace lorashard {
namespace {

DeviceChoice agree_on_device(const Ranks& ranks, const SessionOptions& options) {
  agree_on_settings(ranks, options.settings);
  if (options.peer_timeout_s) set_peer_timeout(*options.peer_timeout_s);
  return choose_device(options.backend, options.backend_where, ranks);
}

}  // namespace

SessionOptions session_options(const Config& config, const std::vector<Setting>& more) {
  const auto& compute = config.run.compute();
  SessionOptions options{.settings = settings_of(config),
                         .backend = compute.backend(),
                         .backend_where = config.where("compute.backend"),
                         .threads = compute.threads(),
                         .peer_timeout_s = config.run.parallel().timeout_s()};
  options.settings.insert(options.settings.end(), more.begin(), more.end());
  return options;
}

Session::Session(const Ranks& ranks, const SessionOptions& options)
    : ranks(ranks),
      device(agree_on_device(ranks, options)),
      compute(ranks, device, choose_threads(options.threads, ranks.host_ranks)),
      stream(compute.stream()),
      world(compute.world()),
      console(first()) {}

void Session::open_base(const std::string& path, int64_t tp_size, const std::string& tp_where) {
  base = BaseModel::open(path);
  if (stream.backend() == Backend::CUDA && base->config().experts > 0) {
    fail_input(path, base->config().architecture +
                         " has a mixture of experts, which the CUDA backend does not compute; set "
                         "compute.backend: CPU");
  }
  const int64_t heads = base->config().heads;
  if (tp_size > heads) {
    fail_input(tp_where, fmt::format("{} ranks are more than the model's {} query heads; use at "
                                     "most {}",
                                     tp_size, heads, heads));
  }
}

LoadedModel::LoadedModel(Session& session, Factors* factors, float* gradients,
                         const ModelOptions& options)
    : weights(load_weights(session.stream, *session.base, session.mesh.tp_rank,
                           session.mesh.tp_size, factors)),
      model(session.stream, session.base->config(), weights, factors, gradients,
            *session.mesh.tensor, options) {
  session.stream.synchronize();  // an error of what was copied to the device belongs here
}

std::unique_ptr<LoadedModel> load_model(Session& session, Factors* factors, float* gradients,
                                        const ModelOptions& options) {
  std::unique_ptr<LoadedModel> loaded;
  run_agreed(session.world,
             [&] { loaded = std::make_unique<LoadedModel>(session, factors, gradients, options); });
  return loaded;
}

Factors factors_of(Stream& stream, const ModelConfig& model, const Adapter& adapter,
                   const Mesh& mesh) {
  Factors factors(stream,
                  adapter_layout(model, modules_with_factors(adapter, linear_modules(model)),
                                 adapter.config, mesh.tp_rank, mesh.tp_size));
  factors.load(adapter);
  return factors;
}

}  // namespace lorashard
