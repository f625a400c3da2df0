#include "trainer/session.h"

#include <fmt/format.h>

#include "configs/error.h"

namespace lorashard {

void check_tensor_degree(const Config& config, const ModelConfig& model) {
  const int64_t tensor = config.run.parallel().tensor();
  if (tensor > model.heads) {
    fail_input(config.where("parallel.tensor"),
               fmt::format("{} ranks are more than the model's {} query heads; use at most {}",
                           tensor, model.heads, model.heads));
  }
}

Factors factors_of(Stream& stream, const ModelConfig& model, const Adapter& adapter,
                   const Mesh& mesh, int64_t tail) {
  Factors factors(stream, model, modules_with_factors(adapter, linear_modules(model)),
                  adapter.config, mesh.tp_rank, mesh.tp_size, tail);
  factors.load(adapter);
  return factors;
}

}  // namespace lorashard
