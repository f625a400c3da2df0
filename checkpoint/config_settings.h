// The keys of config.json, read with checks. The rule: a key that transformers reads for this
// architecture and that would change the mathematics is understood or refused by name; a key that
// it does not read is noted, never refused, and computes nothing.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace lorashard {

// config.json with every key that was looked at remembered, so that the rest can be judged.
class Settings {
 public:
  Settings(const nlohmann::json& object, std::string source, std::string prefix = "")
      : object_(object), source_(std::move(source)), prefix_(std::move(prefix)) {}

  [[noreturn]] void fail(const std::string& key, const std::string& what) const;
  // The value, or null if the key is absent.
  const nlohmann::json& get(const std::string& key);
  bool has(const std::string& key) const { return object_.contains(key); }

  // A size of at least 1; `absent` if the key is left out, `null` if it is null. Nothing: refused.
  int64_t size(const std::string& key, std::optional<int64_t> absent = {},
               std::optional<int64_t> null = {});
  // `absent` if the key is left out or null. Nothing: refused.
  double number(const std::string& key, std::optional<double> absent = {});
  double positive(const std::string& key, std::optional<double> absent = {});
  // `absent` if the key is left out or null.
  bool flag(const std::string& key, bool absent);
  std::string text(const std::string& key, const std::string& absent);
  // The keys, with their prefix, that were not looked at, are not harmless and do not say "off".
  std::vector<std::string> unread(const std::set<std::string>& harmless) const;

 private:
  const nlohmann::json& object_;
  std::string source_, prefix_;
  std::set<std::string> seen_;
};

// Keys that change neither the forward pass nor its gradient: provenance, generation settings
// (transformers moves them to generation_config.json), output switches, code for other programs.
const std::set<std::string>& harmless_keys();

}  // namespace lorashard
