// What train, eval and generate share: ranks and threads, data, and how the settings choose
// factors.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "checkpoint/adapter.h"
#include "checkpoint/base_model.h"
#include "configs/config.h"
#include "parallel/mesh.h"
#include "trainer/compute.h"
#include "trainer/dataset.h"
#include "trainer/lora.h"

namespace lorashard {

// FP32 or BF16 products and activations.
DType activation_type(const RunConfig& run);

// That parallel.tensor does not exceed the query heads; Error (status 2).
void check_tensor_degree(const Config& config, const ModelConfig& model);

// Opens a data file as the config says; the tokenizer of the base is loaded unless the format is
// TOKENS. Errors: status 2.
std::shared_ptr<const Dataset> open_dataset(const Config& config, const std::string& path,
                                            const BaseModel& base);

// The modules to adapt and under which settings; config.target_modules names them as PEFT finds
// them (name_targets). With init_from, what the config does not set is
// taken from that adapter, and what it sets must agree. Errors: status 2 at the setting.
struct LoraPlan {
  AdapterConfig config;
  std::vector<LinearModule> modules;
  std::optional<Adapter> start;    // factors of init_from
  std::vector<std::string> notes;  // settings without effect, what is unknown of init_from
};
LoraPlan plan_lora(const Config& config, const BaseModel& base, const std::string& base_digest);

// The factors of an adapter that was read, with its values. REQUIRES: it fits the model.
Factors factors_of(Stream& stream, const ModelConfig& model, const Adapter& adapter,
                   const Mesh& mesh, int64_t tail = 0);

// Error (status 2) if the adapter says that it was made for another base.
void check_adapter_base(const Adapter& adapter, const std::string& where,
                        const std::string& base_digest);

// What to tell the user of an adapter that carries no digest of its base, as those made elsewhere:
// whether the base that it names is this one. Nothing if it carries one.
std::vector<std::string> adapter_base_notes(const Adapter& adapter, const std::string& where,
                                            const BaseModel& base);

}  // namespace lorashard
