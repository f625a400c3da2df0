// lorashard merge.
#include <fmt/format.h>

#include <cmath>

#include "checkpoint/adapter_base.h"
#include "checkpoint/combine_adapters.h"
#include "checkpoint/export.h"
#include "configs/error.h"
#include "launch/commands.h"
#include "trainer/run/console.h"

namespace lorashard {
namespace {

const std::pair<const char*, Combination> kMethods[] = {
    {"linear", Combination::Linear},      {"cat", Combination::Cat},
    {"ties", Combination::Ties},          {"dare_linear", Combination::DareLinear},
    {"dare_ties", Combination::DareTies}, {"magnitude_prune", Combination::MagnitudePrune}};

CombineOptions combine_options(const MergeOptions& options) {
  CombineOptions o;
  for (const auto& [name, method] : kMethods)
    if (options.method == name) o.method = method;
  o.weights = options.weights;
  if (o.weights.empty()) o.weights.assign(options.adapters.size(), 1);
  if (o.weights.size() != options.adapters.size())
    fail_input("--weights", fmt::format("has {} numbers for {} adapters; one for each is expected",
                                        o.weights.size(), options.adapters.size()));
  for (const double w : o.weights)
    if (!std::isfinite(w)) fail_input("--weights", "holds a number that is not finite");
  const bool sparse = o.method != Combination::Linear && o.method != Combination::Cat;
  if (sparse && !options.density)
    fail_input("--density", "is not given; --method " + options.method +
                                " expects the share of values that are kept, 0 to 1");
  if (!sparse && options.density)
    fail_input("--density", "has no effect with --method " + options.method + "; leave it out");
  o.density = options.density.value_or(1);
  if (!(o.density >= 0 && o.density <= 1))
    fail_input("--density", fmt::format("is {}, expected 0 to 1", o.density));
  o.majority = options.majority_sign == "frequency" ? MajoritySign::Frequency : MajoritySign::Total;
  o.seed = options.seed;
  return o;
}

}  // namespace

int merge_command(const MergeOptions& options, const Ranks& ranks) {
  const CombineOptions o = combine_options(options);
  const auto base = BaseModel::open(options.model);
  const std::string digest = base->digest(ranks.world);
  Console console(true);
  report_notes(console, base->notes());
  std::vector<Adapter> adapters;
  for (const std::string& dir : options.adapters) {
    adapters.push_back(read_adapter(dir, base->config()));
    check_adapter_base(adapters.back(), dir, digest);
    report_notes(console, adapter_base_notes(adapters.back(), dir, *base));
  }
  const Adapter merged =
      combine_adapters(adapters, options.adapters, o, linear_modules(base->config()));
  export_peft(merged, options.out);
  console.line(fmt::format("{} adapters merged by {} into {} modules of rank {}, written to {}",
                           adapters.size(), options.method, merged.modules.size(),
                           merged.config.rank, options.out));
  return 0;
}

}  // namespace lorashard
