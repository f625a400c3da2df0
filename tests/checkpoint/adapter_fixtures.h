// What the tests of adapters, checkpoints and exports share.
#pragma once

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cmath>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "checkpoint/adapter.h"
#include "checkpoint/base_model.h"
#include "checkpoint/safetensors.h"
#include "configs/error.h"
#include "kernels/float_types.h"
#include "tests/support/temp_dir.h"

namespace lorashard {

inline fs::path golden(const std::string& name) {
  return fs::path(LORASHARD_SOURCE_DIR) / "tests" / "golden" / name;
}

inline std::string slurp(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

inline void spill(const fs::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
}

inline nlohmann::ordered_json load_json(const fs::path& path) {
  return nlohmann::ordered_json::parse(slurp(path));
}

// The Error of `call`: its status and text; a failure if there is none.
struct Caught {
  int status = 0;
  std::string text;
};
inline Caught error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& e) {
    return {e.exit_status, e.what()};
  }
  ADD_FAILURE() << "an Error was expected";
  return {};
}
#define EXPECT_ERROR(call, expected_status, part)                                           \
  do {                                                                                      \
    const Caught caught = error_of([&] { call; });                                          \
    EXPECT_EQ(caught.status, expected_status);                                              \
    EXPECT_NE(caught.text.find(part), std::string::npos) << "in \"" << caught.text << "\""; \
  } while (false)

// Files cannot grow beyond `bytes` while this lives: a full disk for a test without privileges.
struct FileSizeLimit {
  explicit FileSizeLimit(uint64_t bytes) {
    ::getrlimit(RLIMIT_FSIZE, &before);
    handler = std::signal(SIGXFSZ, SIG_IGN);
    rlimit limit = before;
    limit.rlim_cur = bytes;
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &before);
    std::signal(SIGXFSZ, handler);
  }
  rlimit before;
  void (*handler)(int);
};

// Every value of a tensor, widened.
inline std::vector<float> values_of(const SafetensorsFile& file, const std::string& name) {
  const TensorInfo* t = file.find(name);
  if (!t) {
    ADD_FAILURE() << "no tensor " << name;
    return {};
  }
  std::vector<float> v(size_t(t->elements()));
  for (size_t i = 0; i < v.size(); ++i) v[i] = load_scalar(file.data(*t), t->dtype, int64_t(i));
  return v;
}

// Numbers in [-1, 1) that differ from each other; a function of `seed` and the index.
inline float some_value(uint32_t seed, size_t i) {
  uint32_t x = seed * 0x9e3779b9u + uint32_t(i) * 0x85ebca6bu + 1;
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  return float(x >> 8) * 0x1p-23f - 1;
}
inline std::vector<float> some_values(uint32_t seed, size_t n) {
  std::vector<float> v(n);
  for (size_t i = 0; i < n; ++i) v[i] = some_value(seed, i);
  return v;
}

inline std::vector<LinearModule> golden_modules() {
  const fs::path path = golden("adapter/base/config.json");
  return linear_modules(parse_model_config(slurp(path), path.string()));
}

// An adapter on q_proj and down_proj of the golden base.
inline Adapter some_adapter(uint32_t seed = 1) {
  Adapter adapter;
  adapter.config.rank = 3;
  adapter.config.alpha = 6;
  adapter.config.target_modules = {"q_proj", "down_proj"};
  adapter.config.base_model = "some/base";
  adapter.config.base_digest = std::string(64, 'b');
  for (const LinearModule& m :
       match_targets(golden_modules(), adapter.config.target_modules, false, {}, "test")) {
    AdapterModule module{m.name, 3, m.in_features, m.out_features, 6, {}, {}};
    module.a = some_values(seed++, size_t(3 * m.in_features));
    module.b = some_values(seed++, size_t(3 * m.out_features));
    adapter.modules.push_back(std::move(module));
  }
  return adapter;
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

inline void expect_same(const Adapter& a, const Adapter& b) {
  EXPECT_TRUE(a.config == b.config);
  ASSERT_EQ(a.modules.size(), b.modules.size());
  for (size_t i = 0; i < a.modules.size(); ++i) {
    const AdapterModule &x = a.modules[i], &y = b.modules[i];
    EXPECT_EQ(x.name, y.name);
    EXPECT_EQ(x.rank, y.rank);
    EXPECT_EQ(x.alpha, y.alpha);
    EXPECT_TRUE(same_bits(x.a, y.a)) << x.name;
    EXPECT_TRUE(same_bits(x.b, y.b)) << x.name;
    EXPECT_TRUE(same_bits(x.magnitude, y.magnitude)) << x.name;
  }
  ASSERT_EQ(a.trained.size(), b.trained.size());
  for (size_t i = 0; i < a.trained.size(); ++i) {
    EXPECT_EQ(a.trained[i].file_name, b.trained[i].file_name);
    EXPECT_TRUE(same_bits(a.trained[i].values, b.trained[i].values)) << a.trained[i].base.name;
  }
}

}  // namespace lorashard
