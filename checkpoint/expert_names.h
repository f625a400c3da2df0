// The names of a mixture of experts' weights and factors.
//
//   files of the base            mlp.gate.weight, mlp.experts.E.gate_proj.weight, .up_proj,
//   .down_proj parameters (transformers 5)  mlp.gate.weight (experts, hidden),
//   mlp.experts.gate_up_proj
//                                (experts, 2 width, hidden), gate above up, and
//                                mlp.experts.down_proj (experts, hidden, width)
//   factors as PEFT saves them   below the module that holds the parameter: mlp.gate.lora_A.weight,
//                                mlp.experts.lora_A.weight. Where both parameters of the experts
//                                are adapted, down_proj's wrapper holds gate_up_proj's, whose
//                                factors are mlp.experts.base_layer.lora_A.weight
//
// Of an expert parameter, A is (experts r, in), expert by expert, and B (out, r experts), in whose
// rows the experts of one column stand side by side (PEFT 0.21, ParamWrapper.get_delta_weight).
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "checkpoint/adapter.h"
#include "checkpoint/model_config.h"

namespace lorashard {

// "….mlp.experts" of a name below it; "" of others.
std::string experts_of(const std::string& name);
// The parameter that a module's weight is part of: "….mlp.experts.3.up_proj" or
// "….mlp.experts.up_proj" → "….mlp.experts.gate_up_proj", "….mlp.gate" → "….mlp.gate.weight".
std::string parameter_name(const std::string& module);

// The module below which PEFT saves the factors of `name`; `down_adapted`: of the experts of this
// layer, down_proj is adapted too. The name itself, where it is a module's.
std::string factor_holder(const std::string& name, bool down_adapted);
// The name of the experts' down_proj beside gate_up_proj `name`; "" if it is not that.
std::string down_beside(const std::string& name);

// `m` carries the name of a factor_holder() in a file; gives it the parameter's name where it holds
// one, as target_parameters says, and the number of experts, from the rows of A. `nested`: the file
// has another holder inside this one.
void name_parameter(LinearModule& m, const AdapterConfig& config, bool nested, int64_t a_rows);

// The adapter as vLLM reads it: a module of its own for each expert's gate_proj, up_proj and
// down_proj, which vLLM wants together (those without factors get zeros), all of one rank, alpha
// and scaling (vLLM knows no patterns): A is padded with zero rows, B with zero columns, and B
// carries what differs in scaling. The modules are no longer LinearModules of the base.
Adapter for_vllm(const Adapter& adapter);

// Where an adapted weight of the base has its factors.
struct WeightFactors {
  std::string module;        // LinearModule::name
  int64_t expert = -1;       // whose factors; -1: the module has one A and B
  bool gate_up = false;      // its rows are one half of B's:
  bool second_half = false;  // of up_proj the second
  int64_t parts() const { return gate_up ? 2 : 1; }
  // Of B, that belongs to the tensor's first.
  int64_t first_row(const AdapterModule& m) const { return second_half ? m.out_features / 2 : 0; }
};
// Of the base's tensor `tensor` ("….weight").
WeightFactors weight_factors(const std::string& tensor);

// B as files have it (out, r experts) → (experts, out, r), each expert's B by itself, and back.
// `b` has out * r * experts values.
std::vector<float> expert_major(const std::vector<float>& b, int64_t out, int64_t r,
                                int64_t experts);
// Rows [first, first + rows) of expert e's B(out, r), from B as files have it.
std::vector<float> expert_rows_of_b(const AdapterModule& m, int64_t e, int64_t first, int64_t rows);
std::vector<float> file_order(const std::vector<float>& b, int64_t out, int64_t r, int64_t experts);

}  // namespace lorashard
