// Adapters merged into one: against PEFT's add_weighted_adapter, and what DARE drops.
#include "checkpoint/combine_adapters.h"

#include <gtest/gtest.h>

#include <cmath>

#include "checkpoint/base_model.h"
#include "tests/checkpoint/adapter_fixtures.h"

namespace lorashard {
namespace {

class Combine : public testing::Test {
 protected:
  const std::unique_ptr<const BaseModel> base =
      BaseModel::open(golden("peft/llama2/model").string());
  const std::vector<LinearModule> modules = linear_modules(base->config());

  Adapter read(const std::string& name) {
    return read_adapter(golden("peft/methods/merge/" + name), base->config());
  }
  Adapter combine(const std::vector<std::string>& names, const CombineOptions& options) {
    std::vector<Adapter> adapters;
    for (const std::string& name : names) adapters.push_back(read(name));
    return combine_adapters(adapters, names, options, modules);
  }
};

// PEFT's values were formed in float64 and rounded once; so were ours.
TEST_F(Combine, EqualsPeft) {
  const struct {
    const char* expected;
    std::vector<std::string> adapters;
    CombineOptions options;
  } cases[] = {
      {"linear", {"a", "b"}, {Combination::Linear, {0.7, -0.4}}},
      {"cat", {"a", "c"}, {Combination::Cat, {0.5, 1.5}}},
      {"ties", {"a", "b"}, {Combination::Ties, {0.6, 0.9}, 0.5}},
      {"ties_frequency", {"a", "b"}, {Combination::Ties, {0.6, 0.9}, 0.7, MajoritySign::Frequency}},
      {"magnitude_prune", {"b", "a"}, {Combination::MagnitudePrune, {1.0, -2.0}, 0.3}}};
  for (const auto& c : cases) {
    SCOPED_TRACE(c.expected);
    const Adapter ours = combine(c.adapters, c.options), theirs = read(c.expected);
    ASSERT_EQ(ours.modules.size(), theirs.modules.size());
    for (size_t m = 0; m < ours.modules.size(); ++m) {
      const AdapterModule &x = ours.modules[m], &y = theirs.modules[m];
      EXPECT_EQ(x.name, y.name);
      EXPECT_EQ(x.rank, y.rank);
      EXPECT_EQ(ours.scaling(x), theirs.scaling(y));
      for (const auto factor : {&AdapterModule::a, &AdapterModule::b}) {
        ASSERT_EQ((x.*factor).size(), (y.*factor).size());
        for (size_t i = 0; i < (x.*factor).size(); ++i)
          ASSERT_NEAR((x.*factor)[i], (y.*factor)[i], 2e-6) << x.name << " " << i;
      }
    }
    EXPECT_EQ(ours.config.target_modules, theirs.config.target_modules);
  }
}

TEST_F(Combine, DareDropsAtRandomByTheSeed) {
  CombineOptions o{Combination::DareLinear, {1, 1}, 1};
  const Adapter all = combine({"a", "b"}, o);
  o.method = Combination::Linear;
  expect_same(all, combine({"a", "b"}, o));  // density 1 drops nothing
  const Adapter once = combine({"a", "b"}, {Combination::DareLinear, {1, 0}, 0.4});
  expect_same(once, combine({"a", "b"}, {Combination::DareLinear, {1, 0}, 0.4}));
  const Adapter other =
      combine({"a", "b"}, {Combination::DareLinear, {1, 0}, 0.4, MajoritySign::Total, 1});
  const Adapter a = read("a");
  double kept = 0, values = 0, changed = 0;
  for (size_t m = 0; m < a.modules.size(); ++m) {
    const double root = std::sqrt(a.scaling(a.modules[m]));
    for (size_t i = 0; i < a.modules[m].a.size(); ++i) {
      const float value = once.modules[m].a[i];
      ++values;
      changed += value != other.modules[m].a[i];
      if (value == 0) continue;
      ++kept;
      ASSERT_NEAR(value, a.modules[m].a[i] * root / 0.4, 1e-5);
    }
  }
  EXPECT_NEAR(kept / values, 0.4, 4 * std::sqrt(0.24 / values));
  EXPECT_NEAR(changed / values, 2 * 0.24, 4 * std::sqrt(0.25 / values));
}

TEST_F(Combine, RefusesWhatDoesNotGoTogether) {
  EXPECT_ERROR(combine({"a", "c"}, {Combination::Linear, {1, 1}}), 2,
               "only cat merges factors of different ranks");
  std::vector<Adapter> adapters = {read("a"), read("b")};
  const auto error = [&](const std::string& part) {
    EXPECT_ERROR(combine_adapters(adapters, {"A", "B"}, {Combination::Linear, {1, 1}}, modules), 2,
                 part);
  };
  adapters[1].config.use_dora = true;
  error("B: is a DoRA adapter");
  adapters[1].config.use_dora = false;
  adapters[0].config.base_digest = "0";
  adapters[1].config.base_digest = "1";
  error("B: was trained on another base");
}

}  // namespace
}  // namespace lorashard
